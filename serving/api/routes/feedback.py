"""Feedback: a caller's judgement of a prediction."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api.dependencies import get_caller, get_services
from serving.api.parameters import IDEMPOTENCY_KEY, idempotency_of
from serving.api.schemas.predictions import FeedbackRequest, FeedbackResponse
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role
from serving.predictions.history import Feedback

router = APIRouter(route_class=GuardedRoute, tags=["feedback"])


@router.post(
    "/v1/feedback",
    status_code=201,
    responses={201: {"model": FeedbackResponse}},
    openapi_extra=IDEMPOTENCY_KEY,
)
@requires(Role.CLIENT, errors=(404, 409))
async def give_feedback(request: Request, body: Parsed[FeedbackRequest]) -> Response:
    """Say whether a prediction is correct."""
    services = get_services(request)
    new = Feedback(**dict(body), idempotency=idempotency_of(request))
    # Rendered here, because the answer is stored in the feedback's transaction and replayed as it was.
    answer = await services.history.put_feedback(
        new,
        get_caller(request),
        lambda judgement: FeedbackResponse.model_validate(judgement).model_dump_json().encode(),
    )
    if not answer.replayed:
        services.metrics.count_feedback(is_correct=body.is_correct)
    headers = {"Idempotency-Replayed": "true"} if answer.replayed else None
    return Response(answer.body, answer.status, headers, "application/json")
