"""Feedback: a caller's judgement of a prediction."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api import serializers
from serving.api.dependencies import body_of, caller_of, services_of
from serving.api.parameters import IDEMPOTENCY_KEY, idempotency_of
from serving.api.schemas.data import FeedbackAnswer, FeedbackRequest
from serving.api.schemas.fields import parse
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.predictions.history import Feedback

router = APIRouter(route_class=GuardedRoute, tags=["feedback"])


@router.post(
    "/v1/feedback",
    status_code=201,
    responses={201: {"model": FeedbackAnswer}},
    openapi_extra=IDEMPOTENCY_KEY,
)
@requires(Role.CLIENT, body=FeedbackRequest, errors=(404, 409))
async def feedback(request: Request) -> Response:
    """Judge a prediction."""
    body = parse(FeedbackRequest, body_of(request))
    services = services_of(request)
    given = Feedback(
        prediction_id=body.prediction_id,
        is_correct=body.is_correct,
        label=body.label,
        comment=body.comment,
        idempotency=idempotency_of(request),
    )
    answer = await services.history.judge(
        given, caller_of(request), lambda judgement: serializers.encode(serializers.judgement(judgement))
    )
    if not answer.replayed:
        services.metrics.count_feedback(is_correct=body.is_correct)
    headers = {"Idempotency-Replayed": "true"} if answer.replayed else None
    return Response(answer.body, answer.status, headers, "application/json")
