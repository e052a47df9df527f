"""The Open Inference Protocol, version 2, over the same predictions, which are stored, too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from db.schema.tables import DIMENSIONS
from registry.bundles.bundle import LABELS
from serving.api import serializers
from serving.api.dependencies import Json, RequestContext, get_services
from serving.api.routes.health import require_ready
from serving.api.routes.predictions import run
from serving.api.schemas.open_inference import (
    InferRequest,
    InferResponse,
    LiveResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ReadyResponse,
    ServerMetadataResponse,
)
from serving.api.security import GuardedRoute, Parsed, public, requires
from serving.api.tensors import HEADER_LENGTH, OCTETS, pack
from serving.core.caller import Role
from serving.errors import NotFound
from serving.predictions.prediction import Prediction, PredictionInput
from serving.privacy.masking import BodyLocation

router = APIRouter(prefix="/v2", route_class=GuardedRoute, tags=["open inference protocol"])

_COLUMNS: Final[Mapping[str, tuple[str, int | None, Callable[[Sequence[Prediction]], Any]]]] = {
    "label": ("BYTES", None, lambda predictions: [each.label for each in predictions]),
    "score": ("FP32", None, lambda predictions: [round(each.confidence, 6) for each in predictions]),
    "probabilities": (
        "FP32",
        len(LABELS),
        lambda predictions: [round(score, 6) for each in predictions for score in each.scores],
    ),
    "prediction_id": ("BYTES", None, lambda predictions: [each.id for each in predictions]),
    "embedding": (
        "FP32",
        DIMENSIONS,
        lambda predictions: np.concatenate([each.embedding for each in predictions]).astype(np.float32),
    ),
    "truncated": ("BOOL", None, lambda predictions: [each.truncated for each in predictions]),
    "language": ("BYTES", None, lambda predictions: [each.language for each in predictions]),
    "supported": ("BOOL", None, lambda predictions: [each.supported for each in predictions]),
}
_BY_DEFAULT: Final = ("label", "score", "probabilities", "prediction_id")


# The protocol's text has no slash, its OpenAPI document has one.
@router.get("/", include_in_schema=False)
@router.get("")
@requires(Role.CLIENT)
async def server_metadata(request: Request) -> ServerMetadataResponse:
    """Return the server's name, its version and the extensions of the protocol that it speaks."""
    return ServerMetadataResponse(
        name="valence", version=get_services(request).version, extensions=["binary_tensor_data"]
    )


@router.get("/health/live")
@public()
async def server_live() -> LiveResponse:
    """Answer if the process runs."""
    return LiveResponse(live=True)


@router.get("/health/ready")
@public(errors=(503,))
async def server_ready(request: Request) -> ReadyResponse:
    """Answer with 200 if the platform is ready."""
    await require_ready(request)
    return ReadyResponse(ready=True)


@router.get("/models/{name}", response_model=ModelMetadataResponse)
@requires(Role.CLIENT, errors=(404, 422))
async def model_metadata(request: Request, name: str) -> Json:
    """Return a model's versions and tensors."""
    versions = get_services(request).catalog().versions(name)
    return _metadata(name, sorted(versions, key=lambda each: (len(each), each)))


@router.get("/models/{name}/versions/{version}", response_model=ModelMetadataResponse)
@requires(Role.CLIENT, errors=(404, 422))
async def version_metadata(request: Request, name: str, version: str) -> Json:
    """Return a version's tensors."""
    if version not in get_services(request).catalog().versions(name):
        raise NotFound(f"model {name!r} has no version {version!r}")
    return _metadata(name, [version])


@router.get("/models/{name}/ready", response_model=ModelReadyResponse)
@requires(Role.CLIENT, errors=(404, 422))
async def model_ready(request: Request, name: str) -> Json:
    """Answer with 200 if a model is ready."""
    get_services(request).catalog().champion(name)
    return {"name": name, "ready": True}


@router.get("/models/{name}/versions/{version}/ready", response_model=ModelReadyResponse)
@requires(Role.CLIENT, errors=(404, 422))
async def version_ready(request: Request, name: str, version: str) -> Json:
    """Answer with 200 if a version is ready."""
    get_services(request).catalog().ready_version(name, version)
    return {"name": name, "ready": True}


@router.post("/models/{name}/infer", responses={200: {"model": InferResponse}})
@requires(Role.CLIENT, errors=(404,), tensors=True, reads=0)
async def model_infer(request: Request, name: str, body: Parsed[InferRequest]) -> Response:
    """Predict with a model, by the Open Inference Protocol.

    Tensors may be binary both ways, by its extension.
    """
    return await _infer(request, body, name)


@router.post("/models/{name}/versions/{version}/infer", responses={200: {"model": InferResponse}})
@requires(Role.CLIENT, errors=(404,), tensors=True, reads=0)
async def version_infer(request: Request, name: str, version: str, body: Parsed[InferRequest]) -> Response:
    """Predict with a version, by the Open Inference Protocol.

    Tensors may be binary both ways, by its extension.
    """
    return await _infer(request, body, name, version)


async def _infer(request: Request, body: InferRequest, name: str, version: str | None = None) -> Response:
    ask = PredictionInput(
        texts=body.inputs[0].data,
        request_id=RequestContext.of(request.scope).request_id,
        model=name,
        version=version,
        user_id=body.parameters.user_id,
        unit=body.parameters.unit,
        location=BodyLocation(("body", "inputs", 0, "data")),
    )
    rendering = _Rendering(body)
    answer = await run(request, ask, rendering.render)
    return serializers.to_response(
        answer, status=200, headers=rendering.headers, media_type=rendering.media_type
    )


def _metadata(name: str, versions: Sequence[str]) -> Json:
    return {
        "name": name,
        "versions": versions,
        "platform": "valence",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": [-1, width] if width else [-1]}
            | ({} if output in _BY_DEFAULT else {"parameters": {"on_request": True}})
            for output, (datatype, width, _) in _COLUMNS.items()
        ],
    }


class _Rendering:
    """The answer to one request: JSON, and after it the outputs that were asked for in binary, in their order."""

    def __init__(self, body: InferRequest) -> None:
        everything = body.parameters.binary_data_output
        self._binary = {} if body.outputs else dict.fromkeys(_BY_DEFAULT, everything)
        for output in body.outputs:
            own = output.parameters.binary_data
            self._binary[output.name] = everything if own is None else own
        self._id = body.id
        self.headers: dict[str, str] = {}
        self.media_type = "application/json"

    def render(self, predictions: Sequence[Prediction]) -> bytes:
        """Return the body; `headers` and `media_type` are those that belong to it."""
        content: Json = {"model_name": predictions[0].model, "model_version": predictions[0].version}
        if self._id is not None:
            content["id"] = self._id
        signs = {
            "truncated": any(each.truncated for each in predictions),
            "unsupported": not all(each.supported for each in predictions),
        }
        if any(signs.values()):
            content["parameters"] = {sign: True for sign, given in signs.items() if given}
        content["outputs"] = outputs = []
        tensors = []
        for name, is_binary in self._binary.items():
            datatype, width, column = _COLUMNS[name]
            shape = [len(predictions), width] if width else [len(predictions)]
            output: Json = {"name": name, "datatype": datatype, "shape": shape}
            if is_binary:
                tensors.append(pack(datatype, column(predictions)))
                output["parameters"] = {"binary_data_size": len(tensors[-1])}
            else:
                output["data"] = column(predictions)
            outputs.append(output)
        body = serializers.encode(content)
        if tensors:
            self.headers, self.media_type = {HEADER_LENGTH: str(len(body))}, OCTETS
        return b"".join([body, *tensors])
