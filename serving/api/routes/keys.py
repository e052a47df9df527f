"""API keys: made, listed, ended."""

from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from db.accounts.keys import Key
from serving.accounts.service import KeySpec
from serving.api import serializers
from serving.api.dependencies import Json, body_of, caller_of, services_of
from serving.api.schemas.control import KeyAnswer, KeyList, KeyRequest
from serving.api.schemas.fields import parse
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role

router = APIRouter(route_class=GuardedRoute, tags=["keys"])


@router.post(
    "/v1/keys",
    status_code=201,
    responses={201: {"model": KeyAnswer}},
)
@requires(Role.ADMIN, body=KeyRequest)
async def add_key(request: Request) -> Response:
    """Make a key; it is shown this once."""
    body = parse(KeyRequest, body_of(request))
    wanted = KeySpec(
        role=body.role,
        name=body.name,
        user_id=body.user_id,
        rate_limit=body.rate_limit,
        expires_at=body.expires_at,
    )
    issued = await services_of(request).accounts.add_key(wanted, caller_of(request))
    return serializers.json_response(
        {**_key(issued.record), "key": issued.text}, 201, {"Cache-Control": "no-store"}
    )


@router.get("/v1/keys", responses={200: {"model": KeyList}})
@requires(Role.ADMIN)
async def keys(request: Request) -> Response:
    """All keys, ended ones too, oldest first."""
    found = await services_of(request).accounts.keys()
    return serializers.json_response({"items": [_key(key) for key in found]})


@router.delete("/v1/keys/{key_id}", status_code=204)
@requires(Role.ADMIN, errors=(404, 422))
async def revoke_key(request: Request, key_id: UUID) -> Response:
    """End a key."""
    await services_of(request).accounts.revoke_key(key_id, caller_of(request))
    return Response(status_code=204)


def _key(key: Key) -> Json:
    return {
        "id": key.id,
        "role": key.role,
        "name": key.name,
        "user_id": key.owner_id,
        "rate_limit": key.rate_limit,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }
