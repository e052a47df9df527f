"""Requests and responses of the Open Inference Protocol, version 2."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Final, Literal, TypeAlias
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from serving.api.schemas.fields import TEXT_SCHEMA, WHOLE, Name, RequestBody, ResponseBody, Texts, is_empty
from serving.api.tensors import decode_base64, flatten, read_strings
from serving.core.texts import MAX_BATCH

_MOST_AXES: Final = 8


class _ProtocolBody(RequestBody):
    """A part of a request in which unknown members are ignored, and null is as good as absent."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, members: Any) -> Any:
        if not isinstance(members, dict):
            return members
        return {name: value for name, value in members.items() if value is not None}


def _require_plain(content_type: str) -> str:
    if content_type not in ("str", "np", "pd"):
        raise ValueError("only texts are read here: send str, or give the input the content type base64")
    return content_type


class InferParameters(_ProtocolBody):
    """The user whom the texts belong to, and the unit of an experiment; `binary_data_output`: every output in binary.

    Other parameters are ignored.
    """

    user_id: UUID | None = None
    unit: Name | None = None
    binary_data_output: bool = False
    content_type: Annotated[str, AfterValidator(_require_plain)] = "str"


class InputParameters(_ProtocolBody):
    """The number of bytes that hold the texts after the JSON, and `base64` if they are in it (MLServer's codecs)."""

    binary_data_size: Annotated[int, Field(ge=0), WHOLE] | None = None
    content_type: Literal["str", "np", "pd", "base64"] = "str"


def _read_texts(data: Any, info: ValidationInfo) -> Any:
    """Return the texts of an input as a flat list, from the JSON or from the bytes after it, which are the context."""
    parameters: InputParameters | None = info.data.get("parameters")
    if parameters is None:
        # Its own fault is told.
        return data
    texts = _choose_form(data, parameters.binary_data_size, info.context or b"")
    if parameters.content_type == "base64" and isinstance(texts, list):
        return decode_base64(texts)
    return texts


def _choose_form(data: Any, size: int | None, tensors: bytes) -> Any:
    if size is None:
        if tensors:
            raise ValueError(f"{len(tensors)} bytes follow the JSON: say so by binary_data_size")
        if data is None:
            raise PydanticCustomError("missing", "it is missing")
        return flatten(data)
    if data is not None:
        raise ValueError("send either data or binary_data_size")
    if size != len(tensors):
        raise ValueError(f"binary_data_size is {size}, but {len(tensors)} bytes follow the JSON")
    return read_strings(tensors)


def _fit_texts(shape: Sequence[int], info: ValidationInfo) -> Sequence[int]:
    """Return the shape if it has as many elements as there are texts, and one axis for them."""
    texts = info.data.get("data")
    if texts is not None and (prod(shape) != len(texts) or sum(size != 1 for size in shape) > 1):
        count = len(texts)
        raise ValueError(f"it must be [{count}], [{count}, 1] or [1, {count}]")
    return shape


_TextTensor: TypeAlias = Annotated[
    Texts,
    BeforeValidator(_read_texts),
    WithJsonSchema(
        {
            "type": "array",
            "items": TEXT_SCHEMA,
            "minItems": 1,
            "maxItems": MAX_BATCH,
            "description": "may be nested; left out with binary_data_size",
        }
    ),
]


class InferInput(_ProtocolBody):
    """The texts: a tensor of any name with one axis, as [n], [n, 1] or [1, n]."""

    name: Name
    datatype: Literal["BYTES"]
    parameters: InputParameters = InputParameters()
    # The default stands for texts after the JSON; it is validated like data, so it never stays.
    data: _TextTensor = Field(default=None, validate_default=True)
    # After the data, which it must fit.
    shape: Annotated[
        list[Annotated[int, Field(ge=1), WHOLE]], Field(max_length=_MOST_AXES), AfterValidator(_fit_texts)
    ]


class OutputParameters(_ProtocolBody):
    """Whether the output comes in binary; null: as the request says for all."""

    binary_data: bool | None = None


class InferOutput(_ProtocolBody):
    """A requested output."""

    name: Literal[
        "label", "score", "probabilities", "prediction_id", "embedding", "truncated", "language", "supported"
    ]
    parameters: OutputParameters = OutputParameters()


class InferRequest(_ProtocolBody):
    """A request for predictions; without `outputs`, the first four of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "42",
                    "inputs": [
                        {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["It broke at once."]}
                    ],
                }
            ]
        }
    )

    id: Annotated[Name | None, BeforeValidator(lambda request_id: request_id or None)] = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=1)]
    outputs: list[InferOutput] = Field(default=[], max_length=8)


class OutputTensor(ResponseBody):
    """One output, flat in row-major order; in binary, its bytes follow the JSON and `binary_data_size` counts them."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32", "BOOL"]
    parameters: dict[str, int] = Field({}, exclude_if=is_empty)
    data: list[Any] = Field([], exclude_if=is_empty)


class InferResponse(ResponseBody):
    """The outputs, in the order of the texts; `parameters` says if texts were longer than the encoder reads."""

    model_name: str
    model_version: str
    id: str = Field("", exclude_if=is_empty)
    parameters: dict[str, bool] = Field({}, exclude_if=is_empty)
    outputs: list[OutputTensor]


class TensorMetadata(ResponseBody):
    """A tensor's type and shape; -1: any length. `on_request`: an output that comes only if it is asked for."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, bool] = Field({}, exclude_if=is_empty)


class ModelMetadataResponse(ResponseBody):
    """A model and its tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadataResponse(ResponseBody):
    """The server's name and version, and the extensions of the protocol that it speaks."""

    name: str
    version: str
    extensions: list[str]


class LiveResponse(ResponseBody):
    """Whether the process runs."""

    live: bool


class ReadyResponse(ResponseBody):
    """Whether the platform is ready."""

    ready: bool


class ModelReadyResponse(ResponseBody):
    """Whether the model is ready."""

    name: str
    ready: bool
