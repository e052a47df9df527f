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
from serving.core.caller import Role
from serving.errors import Invalid, NotFound, Problem
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
}
_BY_DEFAULT: Final = ("label", "score", "probabilities", "prediction_id")


@router.get("")
@requires(Role.CLIENT)
async def server_metadata(request: Request) -> ServerMetadataResponse:
    """Return the server's name and version."""
    return ServerMetadataResponse(name="valence", version=get_services(request).version, extensions=[])


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
@requires(Role.CLIENT, errors=(404,), reads=0)
async def model_infer(request: Request, name: str, body: Parsed[InferRequest]) -> Response:
    """Predict with a model, by the Open Inference Protocol."""
    return await _infer(request, body, name)


@router.post("/models/{name}/versions/{version}/infer", responses={200: {"model": InferResponse}})
@requires(Role.CLIENT, errors=(404,), reads=0)
async def version_infer(request: Request, name: str, version: str, body: Parsed[InferRequest]) -> Response:
    """Predict with a version, by the Open Inference Protocol."""
    return await _infer(request, body, name, version)


async def _infer(request: Request, body: InferRequest, name: str, version: str | None = None) -> Response:
    texts = body.inputs[0].data
    if body.inputs[0].shape != [len(texts)]:
        place = Problem(loc=("body", "inputs", 0, "shape"), message=f"it must be [{len(texts)}]")
        raise Invalid("the body is invalid", [place])
    ask = PredictionInput(
        texts=texts,
        request_id=RequestContext.of(request.scope).request_id,
        model=name,
        version=version,
        user_id=body.parameters.user_id,
        unit=body.parameters.unit,
        location=BodyLocation(("body", "inputs", 0, "data")),
    )
    outputs = [output.name for output in body.outputs] or _BY_DEFAULT
    return serializers.to_response(await run(request, ask, _renderer(outputs, body.id)), status=200)


def _metadata(name: str, versions: Sequence[str]) -> Json:
    return {
        "name": name,
        "versions": versions,
        "platform": "valence",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": [-1, width] if width else [-1]}
            for output, (datatype, width, _) in _COLUMNS.items()
        ],
    }


def _renderer(outputs: Sequence[str], request_id: str | None) -> Callable[[Sequence[Prediction]], bytes]:
    def render(predictions: Sequence[Prediction]) -> bytes:
        content: Json = {
            "model_name": predictions[0].model,
            "model_version": predictions[0].version,
            "outputs": [],
        }
        if request_id is not None:
            content["id"] = request_id
        for output in dict.fromkeys(outputs):
            datatype, width, column = _COLUMNS[output]
            shape = [len(predictions), width] if width else [len(predictions)]
            content["outputs"].append(
                {"name": output, "datatype": datatype, "shape": shape, "data": column(predictions)}
            )
        return serializers.encode(content)

    return render
