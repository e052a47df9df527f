"""Erasure: of a user's data, and of a text with everything that refers to it."""

from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api.dependencies import get_caller, get_services
from serving.api.schemas.erasures import ErasureResponse
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.privacy.erasure import DatedReceipt

router = APIRouter(prefix="/v1", route_class=GuardedRoute, tags=["erasure"])


@router.delete("/users/{user_id}/data", response_model=ErasureResponse)
@requires(Role.ADMIN, errors=(404, 422))
async def erase_user(request: Request, response: Response, user_id: UUID) -> DatedReceipt:
    """Erase a user's texts, predictions and feedback; the account stays."""
    response.headers["Cache-Control"] = "no-store"
    return await get_services(request).in_space().erasure.erase_user(user_id, get_caller(request))


@router.delete("/texts/{text_id}", response_model=ErasureResponse)
@requires(Role.ADMIN, errors=(404, 422))
async def erase_text(request: Request, response: Response, text_id: UUID) -> DatedReceipt:
    """Erase a text for everyone who sent it."""
    response.headers["Cache-Control"] = "no-store"
    return await get_services(request).in_space().erasure.erase_text(text_id, get_caller(request))
