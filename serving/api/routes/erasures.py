"""Erasure: what is a user's, and a text whoever sent it."""

from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api import serializers
from serving.api.dependencies import Json, caller_of, services_of
from serving.api.schemas.erasures import ReceiptAnswer
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.privacy.erasure import DatedReceipt

router = APIRouter(route_class=GuardedRoute, tags=["erasure"])


@router.delete("/v1/users/{user_id}/data", responses={200: {"model": ReceiptAnswer}})
@requires(Role.ADMIN, errors=(404, 422))
async def erase_user(request: Request, user_id: UUID) -> Response:
    """Erase what was predicted about a user, and what the user said; the account stays."""
    return _answer(await services_of(request).erasure.user(user_id, caller_of(request)))


@router.delete("/v1/texts/{text_id}", responses={200: {"model": ReceiptAnswer}})
@requires(Role.ADMIN, errors=(404, 422))
async def erase_text(request: Request, text_id: UUID) -> Response:
    """Erase a text, whoever sent it."""
    return _answer(await services_of(request).erasure.text(text_id, caller_of(request)))


def _answer(dated: DatedReceipt) -> Response:
    receipt = dated.receipt
    content: Json = {
        "kind": receipt.kind,
        "id": receipt.subject,
        "erased_at": dated.erased_at,
        "erased": receipt.erased.as_dict(),
        "shared": {"texts": receipt.shared, "text_ids": receipt.shared_text_ids},
        "near_copies": {
            "cosine": receipt.near_copies.cosine,
            "text_ids": receipt.near_copies.text_ids,
            "complete": receipt.near_copies.complete,
        },
        "backups_expire_at": dated.backups_expire_at,
    }
    return serializers.json_response(content, headers={"Cache-Control": "no-store"})
