"""The Open Inference Protocol, version 2: the same predictions, stored alike, for its clients."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from db.schema.tables import DIMENSIONS
from registry.bundles.bundle import LABELS
from serving.api import serializers
from serving.api.dependencies import Json, body_of, services_of
from serving.api.parameters import predict_of
from serving.api.routes.health import when_ready
from serving.api.routes.predictions import run
from serving.api.schemas.fields import parse
from serving.api.schemas.inference import (
    InferAnswer,
    InferRequest,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
)
from serving.api.security import GuardedRoute, public, requires
from serving.core.caller import Role
from serving.errors import Invalid, NotFound, Problem
from serving.predictions.prediction import Prediction
from serving.privacy.masking import BodyLocation

router = APIRouter(prefix="/v2", route_class=GuardedRoute, tags=["open inference protocol"])

_COLUMNS: Final[Mapping[str, tuple[str, int | None, Callable[[Sequence[Prediction]], Any]]]] = {
    "label": ("BYTES", None, lambda made: [each.label for each in made]),
    "score": ("FP32", None, lambda made: [round(each.confidence, 6) for each in made]),
    "probabilities": (
        "FP32",
        len(LABELS),
        lambda made: [round(score, 6) for each in made for score in each.scores],
    ),
    "prediction_id": ("BYTES", None, lambda made: [each.id for each in made]),
    "embedding": (
        "FP32",
        DIMENSIONS,
        lambda made: np.concatenate([each.embedding for each in made]).astype(np.float32),
    ),
}
_BY_DEFAULT: Final = ("label", "score", "probabilities", "prediction_id")


@router.get("", responses={200: {"model": ServerMetadata}})
@requires(Role.CLIENT)
async def server(request: Request) -> Response:
    """The server."""
    version = services_of(request).version
    return serializers.json_response({"name": "valence", "version": version, "extensions": []})


@router.get("/health/live", responses={200: {"model": Live}})
@public()
async def live() -> Response:
    """Whether the server runs."""
    return serializers.json_response({"live": True})


@router.get("/health/ready", responses={200: {"model": Ready}})
@public(errors=(503,))
async def ready(request: Request) -> Response:
    """Whether the server answers."""
    await when_ready(request)
    return serializers.json_response({"ready": True})


@router.get("/models/{name}", responses={200: {"model": ModelMetadata}})
@router.get("/models/{name}/versions/{version}", responses={200: {"model": ModelMetadata}})
@requires(Role.CLIENT, errors=(404, 422))
async def metadata(request: Request, name: str, version: str | None = None) -> Response:
    """A model's tensors."""
    catalog = services_of(request).catalog()
    versions = catalog.versions(name)
    if version is not None and version not in versions:
        raise NotFound(f"model {name!r} has no version {version!r}")
    return serializers.json_response(
        {
            "name": name,
            "versions": [version] if version else sorted(versions, key=lambda each: (len(each), each)),
            "platform": "valence",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": output, "datatype": datatype, "shape": [-1, width] if width else [-1]}
                for output, (datatype, width, _) in _COLUMNS.items()
            ],
        }
    )


@router.get("/models/{name}/ready", responses={200: {"model": ModelReady}})
@router.get(
    "/models/{name}/versions/{version}/ready",
    responses={200: {"model": ModelReady}},
)
@requires(Role.CLIENT, errors=(404, 422))
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """Whether a model answers."""
    catalog = services_of(request).catalog()
    if version is None:
        catalog.champion(name)
    else:
        catalog.ready_version(name, version)
    return serializers.json_response({"name": name, "ready": True})


@router.post("/models/{name}/infer", responses={200: {"model": InferAnswer}})
@router.post(
    "/models/{name}/versions/{version}/infer",
    responses={200: {"model": InferAnswer}},
)
@requires(Role.CLIENT, body=InferRequest, errors=(404, 429))
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Predict with a model."""
    body = parse(InferRequest, body_of(request))
    texts = body.inputs[0].data
    if body.inputs[0].shape != [len(texts)]:
        place = Problem(loc=("body", "inputs", 0, "shape"), message=f"it must be [{len(texts)}]")
        raise Invalid("the body is invalid", [place])
    ask = predict_of(
        request,
        texts,
        model=name,
        version=version,
        user_id=body.parameters.user_id,
        unit=body.parameters.unit,
        place=BodyLocation(("body", "inputs", 0, "data")),
        idempotent=False,
    )
    outputs = [output.name for output in body.outputs] or _BY_DEFAULT
    return serializers.answered(await run(request, ask, _drawn(outputs, body.id)), status=200)


def _drawn(outputs: Sequence[str], request_id: str | None) -> Callable[[Sequence[Prediction]], bytes]:
    def draw(made: Sequence[Prediction]) -> bytes:
        content: Json = {"model_name": made[0].model, "model_version": made[0].version, "outputs": []}
        if request_id is not None:
            content["id"] = request_id
        for output in dict.fromkeys(outputs):
            datatype, width, column = _COLUMNS[output]
            shape = [len(made), width] if width else [len(made)]
            content["outputs"].append(
                {"name": output, "datatype": datatype, "shape": shape, "data": column(made)}
            )
        return serializers.encode(content)

    return draw
