"""Values that several routes read from a request: the idempotency key and the input of a prediction."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

from starlette.requests import Request

from serving.api.dependencies import RequestContext, get_headers
from serving.api.schemas.predictions import PredictOptions
from serving.core.caller import Idempotency
from serving.errors import Invalid, Problem
from serving.predictions.prediction import PredictionInput
from serving.privacy.masking import BodyLocation

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

IDEMPOTENCY_KEY: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "for 24 hours the same key with the same body gets the first answer again",
            "example": "order-4711",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"},
        }
    ]
}


def idempotency_of(request: Request) -> Idempotency | None:
    """Return the request's idempotency, None without an idempotency key.

    Raises:
        Invalid: the key isn't 1 to 255 visible ASCII characters, or there are two.
    """
    keys = get_headers(request.scope, b"idempotency-key")
    if not keys:
        return None
    key = keys[0]
    if len(keys) > 1 or not _KEY.fullmatch(key):
        place = Problem(
            loc=("header", "Idempotency-Key"), message="send one, of 1 to 255 visible ASCII characters"
        )
        raise Invalid("the idempotency key is invalid", [place])
    body = RequestContext.of(request.scope).body
    return Idempotency(key=key, route=request.scope["path"], body_digest=hashlib.sha256(body).digest())


def to_prediction_input(
    request: Request, texts: Sequence[str], options: PredictOptions, location: BodyLocation
) -> PredictionInput:
    """Return the prediction service's input for these texts."""
    return PredictionInput(
        texts=texts,
        request_id=RequestContext.of(request.scope).request_id,
        model=options.model,
        version=options.version,
        user_id=options.user_id,
        unit=options.unit,
        idempotency=idempotency_of(request),
        location=location,
    )
