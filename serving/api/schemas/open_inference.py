"""Requests and responses of the Open Inference Protocol, version 2."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from serving.api.schemas.fields import WHOLE, Name, RequestBody, ResponseBody, Texts


class InferParameters(RequestBody):
    """The user whom the texts belong to, and the unit of an experiment; other parameters are ignored."""

    model_config = ConfigDict(extra="ignore")

    user_id: UUID | None = None
    unit: Name | None = None


class InferInput(RequestBody):
    """The texts: a tensor of one dimension."""

    name: Literal["text"]
    shape: Annotated[list[Annotated[int, Field(ge=1), WHOLE]], Field(min_length=1, max_length=1)]
    datatype: Literal["BYTES"]
    parameters: dict[str, Any] = Field(default={})
    data: Texts


class InferOutput(RequestBody):
    """A requested output."""

    name: Literal["label", "score", "probabilities", "prediction_id", "embedding"]
    parameters: dict[str, Any] = Field(default={})


class InferRequest(RequestBody):
    """A request for predictions; without `outputs`, every output but the embedding."""

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
    outputs: list[InferOutput] = Field(default=[], max_length=5)


class OutputTensor(ResponseBody):
    """One output, flat in row-major order."""

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32"]
    data: list[Any]


class InferResponse(ResponseBody):
    """The outputs, in the order of the texts."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor]


class TensorMetadata(ResponseBody):
    """A tensor's type and shape; -1: any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataResponse(ResponseBody):
    """A model and its tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadataResponse(ResponseBody):
    """The server's name and version."""

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
