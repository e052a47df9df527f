"""Base classes and field types that the schemas share, and `parse`, which reads a request's body.

Error messages never repeat what the client sent.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from serving.core.moments import FORMS, read_moment
from serving.core.texts import MAX_BATCH, MAX_CHARACTERS, clean_text
from serving.errors import Invalid, Problem, TooLarge

ParsedBody = TypeVar("ParsedBody", bound=BaseModel)

# Pydantic also reads bare numbers as times; the OpenAPI document doesn't allow them.
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]", re.ASCII)

_MAX_PROBLEMS: Final = 20
_MAX_NAME: Final = 100
# Pydantic takes 10 µs to write down a fault, and as long to refuse an unknown member or to build a value.
_MAX_FAULTS: Final = 2_500
_MAX_VALUES: Final = 50_000
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_MAX_VERSION: Final = 2**31 - 1

Sentiment: TypeAlias = Literal["negative", "neutral", "positive"]


class RequestBody(BaseModel):
    """A request's body, or a part of it; unknown members and other types are refused.

    `too_many_values`: what to do if it holds more values than are read.
    """

    too_many_values: ClassVar[str] = "send less at once"
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class QueryParameters(RequestBody):
    """A route's query parameters; text is converted to the type of each."""

    model_config = ConfigDict(strict=False)


class Windowed(RequestBody):
    """Windows of time, by the names of their ends; none may end before it begins."""

    windows: ClassVar[tuple[tuple[str, str], ...]] = (("since", "until"),)

    @model_validator(mode="after")
    def _require_order(self) -> Self:
        for begin, end in self.windows:
            since, until = getattr(self, begin), getattr(self, end)
            if since is not None and until is not None and since > until:
                raise ValueError(f"{end} lies before {begin}: exchange them")
        return self


class ResponseBody(BaseModel):
    """A response's body, or a part of it, read from the attributes of what a service returns.

    `validation_alias` names the attribute where it differs from the JSON member.
    """

    model_config = ConfigDict(
        extra="forbid", from_attributes=True, validate_by_alias=True, validate_by_name=True
    )


NAMED_EXAMPLES: Final = "x-examples"


def name_examples(**bodies: JsonDict) -> JsonDict:
    """Return examples of a body by name, which the OpenAPI document shows beside its schema."""
    return {
        NAMED_EXAMPLES: {
            name: {"summary": name.replace("_", " "), "value": body} for name, body in bodies.items()
        }
    }


def limit_texts(texts: Any, most: int = MAX_BATCH) -> Any:
    """Return the texts if they are no more than `most`."""
    if isinstance(texts, list) and len(texts) > most:
        raise PydanticCustomError(
            "too_many_texts",
            "{n} texts are too many: send at most {most}",
            {"n": len(texts), "most": most},
        )
    return texts


def _refuse_nul(name: str) -> str:
    if "\x00" in name:
        raise ValueError("it holds a NUL character (U+0000): remove it")
    return name


# The bounds hold after trimming, which a schema can't express: it describes texts without space around them.
TEXT_SCHEMA: Final[JsonDict] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_CHARACTERS,
    "pattern": r"^[^\x00]*[^\s\x00][^\x00]*$",
    "description": "1 to 20,000 characters after trimming, any Unicode without NUL",
}

Text: TypeAlias = Annotated[str, AfterValidator(clean_text), Field(json_schema_extra=TEXT_SCHEMA)]


def _read_moment(moment: Any, parse_time: ValidatorFunctionWrapHandler, *, ahead: bool = False) -> Any:
    if isinstance(moment, str):
        named = read_moment(moment, ahead=ahead)
        if named is not None:
            return named
        if _TIME.match(moment):
            with suppress(ValidationError):
                return parse_time(moment)
    raise ValueError(f"write {FORMS}")


def _to_integer(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


# JSON has one kind of number, so 3.0 is an integer, too. It must follow the field's bounds, or the schema loses them.
WHOLE: Final = BeforeValidator(_to_integer)

_MOMENT_SCHEMA: Final[JsonDict] = {
    "anyOf": [
        {"type": "string", "format": "date-time"},
        {"type": "string", "format": "date"},
        {"type": "string", "pattern": r"^([+-]?[0-9]{1,5}[smhdw]|now|today|yesterday)$"},
    ],
    "examples": ["2026-01-31T12:00:00Z", "2026-01-31", "24h", "yesterday"],
}
# Not strict: a strict field would refuse the string that a validator before it lets through.
_NotStrict: TypeAlias = Annotated[AwareDatetime, Field(strict=False)]
Moment: TypeAlias = Annotated[_NotStrict, WrapValidator(_read_moment), WithJsonSchema(_MOMENT_SCHEMA)]
Deadline: TypeAlias = Annotated[
    _NotStrict, WrapValidator(partial(_read_moment, ahead=True)), WithJsonSchema(_MOMENT_SCHEMA)
]
Texts: TypeAlias = Annotated[
    list[Text], Field(min_length=1, json_schema_extra={"maxItems": MAX_BATCH}), BeforeValidator(limit_texts)
]
Name: TypeAlias = Annotated[
    str,
    Field(min_length=1, max_length=255, json_schema_extra={"pattern": r"^[^\x00]*$"}),
    AfterValidator(_refuse_nul),
]
Comment: TypeAlias = Annotated[
    str, Field(max_length=4000, json_schema_extra={"pattern": r"^[^\x00]*$"}), AfterValidator(_refuse_nul)
]


def _to_version(version: Any) -> Any:
    number = _to_integer(version)
    return str(number) if type(number) is int and 0 <= number <= _MAX_VERSION else version


# MLflow numbers versions, so a number is read, too.
VersionName: TypeAlias = Annotated[
    Name,
    BeforeValidator(_to_version),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\x00]*$"},
                {"type": "integer", "minimum": 0, "maximum": _MAX_VERSION},
            ]
        }
    ),
]
PageSize: TypeAlias = Annotated[int, Field(ge=1, le=200)]

# A figure in a response: six decimals.
Rounded: TypeAlias = Annotated[float, AfterValidator(lambda figure: round(figure, 6))]


def is_empty(value: object) -> bool:
    """Return whether a response leaves this member out."""
    return not value


def is_none(value: object) -> bool:
    """Return whether a response leaves this member out because there is none."""
    return value is None


def parse(shape: type[ParsedBody], body: bytes, tensors: bytes = b"") -> ParsedBody:
    """Return the body as `shape`; `tensors` follow it in binary, and its validators have them as their context.

    Raises:
        TooLarge: it holds more texts or values than a request may.
        Invalid: it isn't JSON, or not of this shape.
    """
    # Editors of Windows begin a file with it, and readers may ignore it (RFC 8259, 8.1).
    body = body.removeprefix(BOM_UTF8)
    _require_few_values(shape, body)
    try:
        return shape.model_validate_json(body, context=tensors)
    except ValidationError as error:
        if error.error_count() > _MAX_FAULTS:
            raise Invalid(
                f"the body has {error.error_count():,} faults: it isn't of this route's form"
            ) from None
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        for fault in faults:
            if fault["type"] == "too_many_texts":
                raise TooLarge(fault["msg"]) from None
        raise Invalid("the body is invalid", to_problems(faults, "body", shape=shape)) from None


def _require_few_values(shape: type[BaseModel], body: bytes) -> None:
    """Raise TooLarge unless the values and the members of the body are few: their number is the cost of parsing it."""
    if len(body) <= _MAX_VALUES:
        return
    count = end = 0
    for string in _STRING.finditer(body):
        count += 1 + body.count(b",", end, string.start())
        end = string.end()
        if count > _MAX_VALUES:
            break
    else:
        count += body.count(b",", end)
    if count > _MAX_VALUES:
        advice = getattr(shape, "too_many_values", RequestBody.too_many_values)
        raise TooLarge(f"the body holds more than {_MAX_VALUES:,} values: {advice}")


def to_problems(
    faults: Iterable[Mapping[str, Any]], *place: str, shape: type[BaseModel] | None = None
) -> list[Problem]:
    """Return the first 20 of pydantic's faults in our words: a thousand texts may all be wrong."""
    return [
        # A field's name may be as long as the body.
        Problem(loc=(*place, *(_cut(part) for part in fault["loc"])), message=_explain(fault, shape))
        for fault in islice(faults, _MAX_PROBLEMS)
    ]


def _cut(part: str | int) -> str | int:
    return part if isinstance(part, int) or len(part) <= _MAX_NAME else f"{part[:_MAX_NAME]}…"


def _explain(fault: Mapping[str, Any], shape: type[BaseModel] | None) -> str:
    if fault["type"] == "missing":
        return "it is missing"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _list_fields(shape, fault["loc"][:-1]) if shape is not None else ""
        return f"there is no such field: use {known}" if known else "there is no such field"
    message: str = fault["msg"]
    return message.removeprefix("Value error, ")


@cache
def _schema_of(shape: type[BaseModel]) -> JsonDict:
    return shape.model_json_schema()


def _list_fields(shape: type[BaseModel], path: Sequence[str | int]) -> str:
    """Return the names of the fields of the object at a path in a body; "" if its schema doesn't say."""
    schema: Any = _schema_of(shape)
    node = schema
    for part in path:
        node = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        for kind in (node, *node.get("anyOf", ())) if node else ():
            if "$ref" in kind:
                node = schema["$defs"][kind["$ref"].rpartition("/")[2]]
        if not node:
            return ""
    return ", ".join(node.get("properties", ()))
