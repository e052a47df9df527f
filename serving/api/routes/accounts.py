"""Accounts: users, their API keys, and the audit log of who did what."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from db.accounts.audit import AuditFilters, AuditPage
from db.accounts.users import User, UserPage
from serving.accounts.service import KeySpec
from serving.api.dependencies import Json, get_caller, get_services
from serving.api.schemas.accounts import (
    AuditQuery,
    AuditResponse,
    KeyListResponse,
    KeyRequest,
    KeyResponse,
    NewKeyResponse,
    UserListResponse,
    UserQuery,
    UserRequest,
    UserResponse,
)
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role

router = APIRouter(prefix="/v1", route_class=GuardedRoute)


@router.post("/users", status_code=201, response_model=UserResponse, tags=["users"])
@requires(Role.ADMIN, errors=(409,))
async def create_user(request: Request, body: Parsed[UserRequest]) -> User:
    """Add a user."""
    return await get_services(request).accounts.add_user(body.username, body.email, get_caller(request))


@router.get("/users", response_model=UserListResponse, tags=["users"])
@requires(Role.ADMIN, errors=(422,))
async def list_users(request: Request, query: Annotated[UserQuery, Query()]) -> UserPage:
    """List the users, newest first."""
    return await get_services(request).accounts.list_users(**dict(query))


@router.get("/users/{user_id}", response_model=UserResponse, tags=["users"])
@requires(Role.ADMIN, errors=(404, 422))
async def get_user(request: Request, user_id: UUID) -> User:
    """Return a user."""
    return await get_services(request).accounts.get_user(user_id)


@router.post("/keys", status_code=201, tags=["keys"])
@requires(Role.ADMIN)
async def create_key(request: Request, response: Response, body: Parsed[KeyRequest]) -> NewKeyResponse:
    """Create a key; the answer is the only one that shows it."""
    issued = await get_services(request).accounts.add_key(KeySpec(**dict(body)), get_caller(request))
    response.headers["Cache-Control"] = "no-store"
    return NewKeyResponse(**KeyResponse.model_validate(issued.record).model_dump(), key=issued.text)


@router.get("/keys", response_model=KeyListResponse, tags=["keys"])
@requires(Role.ADMIN)
async def list_keys(request: Request) -> Json:
    """List all keys, revoked ones too, oldest first."""
    return {"items": await get_services(request).accounts.list_keys()}


@router.delete("/keys/{key_id}", status_code=204, tags=["keys"])
@requires(Role.ADMIN, errors=(404, 422))
async def revoke_key(request: Request, key_id: UUID) -> Response:
    """Revoke a key."""
    await get_services(request).accounts.revoke_key(key_id, get_caller(request))
    return Response(status_code=204)


@router.get("/audit", response_model=AuditResponse, tags=["audit"])
@requires(Role.ADMIN, errors=(422,))
async def list_audit(request: Request, query: Annotated[AuditQuery, Query()]) -> AuditPage:
    """List who did what, newest first."""
    filters = AuditFilters(**query.model_dump(exclude={"limit", "cursor"}))
    return await get_services(request).audit.list(filters, limit=query.limit, cursor=query.cursor)
