"""Embedding spaces: which one is searched, another built beside it, the switch between them."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api import serializers
from serving.api.dependencies import Json, body_of, caller_of, services_of
from serving.api.schemas.fields import parse
from serving.api.schemas.spaces import SpaceAnswer, SpaceList, SpaceRequest
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.spaces.service import SpaceProgress

router = APIRouter(route_class=GuardedRoute, tags=["spaces"])


@router.get("/v1/spaces", responses={200: {"model": SpaceList}})
@requires(Role.ENGINEER)
async def spaces(request: Request) -> Response:
    """All embedding spaces, and how far each is."""
    found = await services_of(request).spaces.list()
    return serializers.json_response({"items": [_space(each) for each in found]})


@router.post("/v1/spaces", status_code=202, responses={202: {"model": SpaceAnswer}})
@requires(Role.ENGINEER, body=SpaceRequest, errors=(404, 409))
async def begin(request: Request) -> Response:
    """Build another space beside the live one, at background priority."""
    body = parse(SpaceRequest, body_of(request))
    return serializers.json_response(
        _space(await services_of(request).spaces.begin(body.name, caller_of(request))), 202
    )


@router.post("/v1/spaces/{name}/switch", responses={200: {"model": SpaceAnswer}})
@requires(Role.ENGINEER, errors=(404, 409, 422))
async def switch(request: Request, name: str) -> Response:
    """Make a whole space the one that is searched; the one before is kept whole."""
    return serializers.json_response(
        _space(await services_of(request).spaces.switch(name, caller_of(request)))
    )


@router.delete("/v1/spaces/{name}", status_code=202, responses={202: {"model": SpaceAnswer}})
@requires(Role.ENGINEER, errors=(404, 409, 422))
async def remove(request: Request, name: str) -> Response:
    """Remove a space that isn't live, with its vectors, in the background."""
    return serializers.json_response(
        _space(await services_of(request).spaces.remove(name, caller_of(request))), 202
    )


def _space(standing: SpaceProgress) -> Json:
    space = standing.space
    return {
        "name": space.name,
        "state": space.state,
        "answers": standing.answers,
        "vectors": space.vectors,
        "share": standing.share,
        "pace": space.pace,
        "seconds_left": standing.left,
        "begun_at": space.begun_at,
        "live_at": space.live_at,
        "reason": space.reason,
    }
