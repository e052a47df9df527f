"""Users: whom texts are of, and who may own keys."""

from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from db.accounts.users import User
from serving.api import serializers
from serving.api.dependencies import Json, body_of, caller_of, services_of
from serving.api.schemas.control import UserAnswer, UserRequest
from serving.api.schemas.fields import parse
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role

router = APIRouter(route_class=GuardedRoute, tags=["users"])


@router.post("/v1/users", status_code=201, responses={201: {"model": UserAnswer}})
@requires(Role.ADMIN, body=UserRequest, errors=(409,))
async def add_user(request: Request) -> Response:
    """Add a user."""
    body = parse(UserRequest, body_of(request))
    made = await services_of(request).accounts.add_user(body.username, body.email, caller_of(request))
    return serializers.json_response(_user(made), 201)


@router.get("/v1/users/{user_id}", responses={200: {"model": UserAnswer}})
@requires(Role.ADMIN, errors=(404, 422))
async def user(request: Request, user_id: UUID) -> Response:
    """A user."""
    return serializers.json_response(_user(await services_of(request).accounts.user(user_id)))


def _user(user: User) -> Json:
    return {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "created_at": user.created_at,
    }
