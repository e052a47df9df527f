"""Users: the owners of texts and keys."""

from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request

from db.accounts.users import User
from serving.api.dependencies import get_caller, get_services
from serving.api.schemas.accounts import UserRequest, UserResponse
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role

router = APIRouter(prefix="/v1/users", route_class=GuardedRoute, tags=["users"])


@router.post("", status_code=201, response_model=UserResponse)
@requires(Role.ADMIN, errors=(409,))
async def add_user(request: Request, body: Parsed[UserRequest]) -> User:
    """Add a user."""
    return await get_services(request).accounts.add_user(body.username, body.email, get_caller(request))


@router.get("/{user_id}", response_model=UserResponse)
@requires(Role.ADMIN, errors=(404, 422))
async def user(request: Request, user_id: UUID) -> User:
    """Return a user."""
    return await get_services(request).accounts.get_user(user_id)
