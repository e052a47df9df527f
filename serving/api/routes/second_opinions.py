"""Feedback on nearby texts: a second opinion on a prediction, and what else a correction contradicts."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.requests import Request

from serving.api.dependencies import get_caller, get_services
from serving.api.middleware import while_connected
from serving.api.schemas.second_opinions import CorrectionsQuery, CorrectionsResponse, SecondOpinionResponse
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.search.label_suggestions import CorrectionSuggestions, LabelSuggestion

router = APIRouter(prefix="/v1/predictions/{prediction_id}", route_class=GuardedRoute, tags=["predictions"])


@router.get("/second-opinion", response_model=SecondOpinionResponse)
@requires(
    Role.CLIENT,
    errors=(
        404,
        422,
    ),
    reads=0,
)
async def get_second_opinion(request: Request, prediction_id: UUID) -> LabelSuggestion:
    """Let the feedback on the nearest texts vote on a prediction."""
    services, caller = get_services(request), get_caller(request)
    services.rate_limiter.take(caller, 1)
    return await while_connected(
        request.receive, services.in_space().label_suggestions.suggest(prediction_id, caller)
    )


@router.get("/corrections", response_model=CorrectionsResponse)
@requires(
    Role.CLIENT,
    errors=(
        404,
        409,
        422,
    ),
    reads=0,
)
async def list_corrections(
    request: Request, prediction_id: UUID, query: Annotated[CorrectionsQuery, Query()]
) -> CorrectionSuggestions:
    """List near-duplicates whose predictions the correction of this one contradicts."""
    services, caller = get_services(request), get_caller(request)
    services.rate_limiter.take(caller, 1)
    return await while_connected(
        request.receive,
        services.in_space().label_suggestions.suggest_corrections(
            prediction_id, caller, min_similarity=query.min_similarity, k=query.k
        ),
    )
