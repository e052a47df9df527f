"""The kinds of fields that requests share, and how a body is read into its shape.

Messages never repeat what was sent.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from serving.core.texts import MAX_BATCH, MAX_CHARACTERS, clean
from serving.errors import Invalid, Problem, TooLarge

Request = TypeVar("Request", bound=BaseModel)

# Pydantic also takes bare numbers for times; the document does not.
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")

Sentiment: TypeAlias = Literal["negative", "neutral", "positive"]


class Body(BaseModel):
    """A request's body: nothing unknown in it, nothing of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Shape(BaseModel):
    """An answer's body, for the document and the tests: answers are rendered without it."""

    model_config = ConfigDict(extra="forbid")


def _counted(texts: Any) -> Any:
    if isinstance(texts, list) and len(texts) > MAX_BATCH:
        raise PydanticCustomError(
            "too_many_texts",
            "{n} texts are too many: send at most {most}",
            {"n": len(texts), "most": MAX_BATCH},
        )
    return texts


def _without_nul(name: str) -> str:
    if "\x00" in name:
        raise ValueError("it holds a NUL character (U+0000): remove it")
    return name


# The bounds hold after trimming, which a schema can't say: it describes texts that need none.
TEXT_SCHEMA: Final[JsonDict] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_CHARACTERS,
    "pattern": r"^[^\x00]*[^\s\x00][^\x00]*$",
    "description": "1 to 20,000 characters after trimming, any Unicode without NUL",
}

Text: TypeAlias = Annotated[str, AfterValidator(clean), Field(json_schema_extra=TEXT_SCHEMA)]


def _written_out(moment: Any) -> Any:
    if not (isinstance(moment, str) and _DATE.match(moment)):
        raise ValueError("write a date and a time with its offset, as in 2026-01-31T12:00:00Z")
    return moment


def _whole(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


# JSON has one kind of number, so 3.0 is an integer, too. Stands after a field's bounds, or the schema loses them.
WHOLE: Final = BeforeValidator(_whole)

# Not strict: after a validator that runs before it, a strict field would no longer take a string.
Moment: TypeAlias = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_written_out)]
Texts: TypeAlias = Annotated[
    list[Text],
    Field(min_length=1, json_schema_extra={"maxItems": MAX_BATCH}),
    BeforeValidator(_counted),
]
Name: TypeAlias = Annotated[
    str,
    Field(min_length=1, max_length=255, json_schema_extra={"pattern": r"^[^\x00]*$"}),
    AfterValidator(_without_nul),
]
Comment: TypeAlias = Annotated[
    str, Field(max_length=4000, json_schema_extra={"pattern": r"^[^\x00]*$"}), AfterValidator(_without_nul)
]


def parse(shape: type[Request], body: bytes) -> Request:
    """The body as `shape`.

    Raises:
        TooLarge: it holds more texts than a request may.
        Invalid: it is no JSON, or not of this shape.
    """
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        for fault in faults:
            if fault["type"] == "too_many_texts":
                raise TooLarge(fault["msg"]) from None
        raise Invalid("the body is invalid", problems(faults)) from None


def problems(faults: Sequence[Any]) -> list[Problem]:
    """What pydantic says, in the platform's words; 20 at most, as a thousand texts may all be wrong."""
    return [
        Problem(loc=("body", *fault["loc"]), message=fault["msg"].removeprefix("Value error, "))
        for fault in faults[:20]
    ]
