"""Models: which versions are registered, and which of them answer."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api import render
from serving.api.access import GuardedRoute, requires
from serving.api.deps import Json, services_of
from serving.api.schemas.control import ModelAnswer, ModelList
from serving.catalogue import Entry
from serving.gateway import Role

router = APIRouter(route_class=GuardedRoute, tags=["models"])


@router.get("/v1/models", responses={200: {"model": ModelList}})
@requires(Role.ENGINEER)
async def models(request: Request) -> Response:
    """All models."""
    catalogue = services_of(request).catalogue()
    return render.json_response({"items": [{"name": name} for name in sorted(catalogue.models)]})


@router.get("/v1/models/{name}", responses={200: {"model": ModelAnswer}})
@requires(Role.ENGINEER, errors=(404, 422))
async def model(request: Request, name: str) -> Response:
    """A model and its versions."""
    versions = services_of(request).catalogue().versions(name)
    newest_first = sorted(versions, key=lambda version: (len(version), version), reverse=True)
    return render.json_response(
        {"name": name, "versions": [_version(version, versions[version]) for version in newest_first]}
    )


def _version(version: str, entry: Entry) -> Json:
    record = entry.record
    content: Json = {
        "version": version,
        "aliases": list(record.aliases),
        "kind": record.kind,
        "encoder": record.encoder,
        "metrics": dict(record.metrics),
        "state": entry.state,
    }
    if entry.reason is not None:
        content["reason"] = entry.reason
    return content
