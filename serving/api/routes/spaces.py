"""Embedding spaces: list them, build another one, switch search to it, remove one."""

from fastapi import APIRouter
from starlette.requests import Request

from serving.api.dependencies import Json, get_caller, get_services
from serving.api.schemas.spaces import SpaceListResponse, SpaceRequest, SpaceResponse
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role
from serving.spaces.service import SpaceProgress

router = APIRouter(prefix="/v1/spaces", route_class=GuardedRoute, tags=["spaces"])


@router.get("", response_model=SpaceListResponse)
@requires(Role.ENGINEER)
async def list_spaces(request: Request) -> Json:
    """List all embedding spaces and the share of texts that each has."""
    return {"items": await get_services(request).spaces.list()}


@router.post("", status_code=202, response_model=SpaceResponse)
@requires(Role.ENGINEER, errors=(404, 409))
async def build_space(request: Request, body: Parsed[SpaceRequest]) -> SpaceProgress:
    """Build another space in the background, while the live one is searched."""
    return await get_services(request).spaces.begin(body.name, get_caller(request))


@router.post("/{name}/switch", response_model=SpaceResponse)
@requires(Role.ENGINEER, errors=(404, 409, 422))
async def switch_space(request: Request, name: str) -> SpaceProgress:
    """Search a complete space from now on; the former one is kept complete."""
    return await get_services(request).spaces.switch(name, get_caller(request))


@router.delete("/{name}", status_code=202, response_model=SpaceResponse)
@requires(Role.ENGINEER, errors=(404, 409, 422))
async def remove_space(request: Request, name: str) -> SpaceProgress:
    """Remove a space that isn't live, and its vectors, in the background."""
    return await get_services(request).spaces.remove(name, get_caller(request))
