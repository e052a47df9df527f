"""Requests and answers of the Open Inference Protocol, version 2."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from serving.api.schemas.fields import WHOLE, Body, Name, Shape, Texts


class InferParameters(Body):
    """Whom the texts are of, and what sticks to an arm; other parameters are ignored."""

    model_config = ConfigDict(extra="ignore")

    user_id: UUID | None = None
    unit: Name | None = None


class InferInput(Body):
    """The texts: a tensor of one dimension."""

    name: Literal["text"]
    shape: Annotated[list[Annotated[int, Field(ge=1), WHOLE]], Field(min_length=1, max_length=1)]
    datatype: Literal["BYTES"]
    parameters: dict[str, Any] = Field(default={})
    data: Texts


class InferOutput(Body):
    """An output that is wanted."""

    name: Literal["label", "score", "probabilities", "prediction_id", "embedding"]
    parameters: dict[str, Any] = Field(default={})


class InferRequest(Body):
    """A request for predictions; without `outputs` all but the embedding are answered."""

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

    id: Name | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[InferInput], Field(min_length=1, max_length=1)]
    outputs: list[InferOutput] = Field(default=[])


class Tensor(Shape):
    """One output, flat in row-major order."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32"]
    data: list[Any]


class InferAnswer(Shape):
    """The outputs, in the order of the texts."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[Tensor]


class TensorInfo(Shape):
    """What a tensor looks like; -1: any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Shape):
    """A model and its tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ServerMetadata(Shape):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class Live(Shape):
    """Whether the server runs."""

    live: bool


class Ready(Shape):
    """Whether the server answers."""

    ready: bool


class ModelReady(Ready):
    """Whether the model answers."""

    name: str
