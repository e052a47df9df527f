"""What feedback says of other predictions: a second opinion, and what else a correction would mend."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from serving.api import serializers
from serving.api.dependencies import caller_of, services_of
from serving.api.middleware import while_connected
from serving.api.schemas.insights import CorrectionsAnswer, CorrectionsQuery, OpinionAnswer
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role

router = APIRouter(prefix="/v1/predictions/{prediction_id}", route_class=GuardedRoute, tags=["predictions"])


@router.get("/second-opinion", responses={200: {"model": OpinionAnswer}})
@requires(Role.CLIENT, errors=(404, 422, 429))
async def second_opinion(request: Request, prediction_id: UUID) -> Response:
    """What people said of the texts nearest to a prediction's."""
    services, caller = services_of(request), caller_of(request)
    services.rate_limiter.take(caller, 1)
    found = await while_connected(request.receive, services.label_suggestions.suggest(prediction_id, caller))
    return serializers.json_response(serializers.opinion(found))


@router.get("/corrections", responses={200: {"model": CorrectionsAnswer}})
@requires(Role.CLIENT, errors=(404, 409, 422, 429))
async def corrections(
    request: Request, prediction_id: UUID, query: Annotated[CorrectionsQuery, Query()]
) -> Response:
    """Which predictions of near-duplicates the correction of this one speaks against."""
    services, caller = services_of(request), caller_of(request)
    services.rate_limiter.take(caller, 1)
    found = await while_connected(
        request.receive,
        services.label_suggestions.suggest_corrections(
            prediction_id, caller, min_similarity=query.min_similarity, k=query.k
        ),
    )
    return serializers.json_response(serializers.corrections(found))
