"""Embeddings with OpenAI's request and response; nothing is stored."""

import base64

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api import serializers
from serving.api.bodies import LARGE_BODY
from serving.api.dependencies import Json, get_caller, get_services
from serving.api.middleware import while_connected
from serving.api.schemas.openai import EmbeddingsRequest, EmbeddingsResponse
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role
from serving.errors import NotFound
from serving.privacy.masking import BodyLocation

router = APIRouter(route_class=GuardedRoute, tags=["embeddings"])


@router.post("/v1/embeddings", responses={200: {"model": EmbeddingsResponse}})
@requires(Role.CLIENT, errors=(404,), reads=0, max_body=LARGE_BODY)
async def create_embeddings(request: Request, body: Parsed[EmbeddingsRequest]) -> Response:
    """Embed texts in the live space, whichever registered model or space is named."""
    services = get_services(request)
    catalog = services.catalog()
    space = catalog.space
    if body.model != space and body.model not in catalog.models:
        raise NotFound(f"there is no such embedding model: use {space!r}")
    services.rate_limiter.take(get_caller(request), len(body.input))
    embedded = await while_connected(
        request.receive, services.predictions.embed(body.input, BodyLocation(("body", "input")), space=space)
    )
    rows = np.ascontiguousarray(embedded.vectors, "<f4")
    data = []
    signs = zip(embedded.truncated, embedded.unknown, strict=True)
    for index, (row, (truncated, unknown)) in enumerate(zip(rows, signs, strict=True)):
        packed = body.encoding_format == "base64"
        item: Json = {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.tobytes()).decode() if packed else row,
        }
        if truncated:
            item["truncated"] = True
        if unknown:
            item["mostly_unknown"] = True
        data.append(item)
    return serializers.json_response(
        {
            "object": "list",
            "data": data,
            "model": space,
            "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
        }
    )
