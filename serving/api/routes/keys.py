"""API keys: created, listed, revoked."""

from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.accounts.service import KeySpec
from serving.api.dependencies import Json, get_caller, get_services
from serving.api.schemas.accounts import KeyListResponse, KeyRequest, KeyResponse, NewKeyResponse
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role

router = APIRouter(prefix="/v1/keys", route_class=GuardedRoute, tags=["keys"])


@router.post("", status_code=201)
@requires(Role.ADMIN)
async def add_key(request: Request, response: Response, body: Parsed[KeyRequest]) -> NewKeyResponse:
    """Create a key; the answer is the only one that shows it."""
    issued = await get_services(request).accounts.add_key(KeySpec(**dict(body)), get_caller(request))
    response.headers["Cache-Control"] = "no-store"
    return NewKeyResponse(**KeyResponse.model_validate(issued.record).model_dump(), key=issued.text)


@router.get("", response_model=KeyListResponse)
@requires(Role.ADMIN)
async def keys(request: Request) -> Json:
    """List all keys, revoked ones too, oldest first."""
    return {"items": await get_services(request).accounts.list_keys()}


@router.delete("/{key_id}", status_code=204)
@requires(Role.ADMIN, errors=(404, 422))
async def revoke_key(request: Request, key_id: UUID) -> Response:
    """Revoke a key."""
    await get_services(request).accounts.revoke_key(key_id, get_caller(request))
    return Response(status_code=204)
