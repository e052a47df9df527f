"""What several routes read from a request besides its body: the idempotency key and the model's options."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request

from serving.api.dependencies import Exchange, header
from serving.core.caller import Idempotency
from serving.errors import Invalid, Problem
from serving.predictions.prediction import PredictionInput
from serving.privacy.masking import TEXTS, BodyLocation

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

IDEMPOTENCY_KEY: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "the same key with the same body gets the first answer again, for 24 hours",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"},
        }
    ]
}


def idempotency_of(request: Request) -> Idempotency | None:
    """The request's idempotency, if its client asks for it.

    Raises:
        Invalid: the key is no 1 to 255 visible ASCII characters.
    """
    key = header(request.scope, b"idempotency-key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        place = Problem(loc=("header", "Idempotency-Key"), message="use 1 to 255 visible ASCII characters")
        raise Invalid("the idempotency key is invalid", [place])
    body = Exchange.of(request.scope).body
    return Idempotency(key=key, route=request.scope["path"], body_digest=hashlib.sha256(body).digest())


def predict_of(
    request: Request,
    texts: Sequence[str],
    *,
    model: str | None,
    version: str | None,
    user_id: UUID | None,
    unit: str | None,
    location: BodyLocation = TEXTS,
    idempotent: bool = True,
) -> PredictionInput:
    """The gateway's request for these texts."""
    return PredictionInput(
        texts=texts,
        request_id=Exchange.of(request.scope).request_id,
        model=model,
        version=version,
        user_id=user_id,
        unit=unit,
        idempotency=idempotency_of(request) if idempotent else None,
        location=location,
    )
