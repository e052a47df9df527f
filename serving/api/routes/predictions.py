"""Predictions: make one or many, read one or a page of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from db.predictions.predictions import PredictionFilters
from serving.api import serializers
from serving.api.dependencies import body_of, caller_of, services_of
from serving.api.middleware import while_connected
from serving.api.parameters import IDEMPOTENCY_KEY, predict_of
from serving.api.schemas.data import (
    PredictBatchAnswer,
    PredictBatchRequest,
    PredictionPage,
    PredictionQuery,
    PredictRequest,
    RememberedPrediction,
)
from serving.api.schemas.fields import parse
from serving.api.schemas.insights import ExplainedPrediction
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.errors import ServingError
from serving.predictions.prediction import Prediction, PredictionInput
from serving.predictions.service import Answer
from serving.privacy.masking import TEXT

router = APIRouter(route_class=GuardedRoute, tags=["predictions"])


async def run(
    request: Request, ask: PredictionInput, draw: Callable[[Sequence[Prediction]], bytes]
) -> Answer:
    """Ask the gateway for predictions, as long as the client stays, and measure it."""
    services, caller = services_of(request), caller_of(request)
    services.rate_limiter.take(caller, len(ask.texts))
    answer = await while_connected(request.receive, services.predictions.predict(ask, caller, draw))
    if answer.timing is not None:
        services.metrics.observe_timing(answer.timing)
    return answer


@router.post(
    "/v1/predict",
    status_code=201,
    responses={201: {"model": ExplainedPrediction}},
    openapi_extra=IDEMPOTENCY_KEY,
)
@requires(Role.CLIENT, body=PredictRequest, errors=(404, 409, 429), sheds=True)
async def predict(request: Request) -> Response:
    """Predict the sentiment of a text, and remember it."""
    body = parse(PredictRequest, body_of(request))
    ask = predict_of(
        request,
        (body.text,),
        model=body.model,
        version=body.version,
        user_id=body.user_id,
        unit=body.unit,
        place=TEXT,
    )
    answer = await run(request, ask, serializers.one(with_embedding=body.return_embedding))
    return serializers.answered(await _explained(request, answer) if body.explain else answer)


@router.post(
    "/v1/predict/batch",
    status_code=201,
    responses={201: {"model": PredictBatchAnswer}},
    openapi_extra=IDEMPOTENCY_KEY,
)
@requires(Role.CLIENT, body=PredictBatchRequest, errors=(404, 409, 429))
async def predict_batch(request: Request) -> Response:
    """Predict the sentiment of up to a thousand texts, and remember them."""
    body = parse(PredictBatchRequest, body_of(request))
    ask = predict_of(
        request,
        body.texts,
        model=body.model,
        version=body.version,
        user_id=body.user_id,
        unit=body.unit,
    )
    return serializers.answered(
        await run(request, ask, serializers.many(with_embedding=body.return_embedding))
    )


@router.get(
    "/v1/predictions",
    responses={200: {"model": PredictionPage}},
)
@requires(Role.CLIENT, errors=(422,))
async def predictions(request: Request, query: Annotated[PredictionQuery, Query()]) -> Response:
    """Stored predictions, newest first."""
    filters = PredictionFilters(
        sentiment=query.sentiment,
        model=query.model,
        model_version=query.model_version,
        arm=query.arm,
        user_id=query.user_id,
        since=query.since,
        until=query.until,
        has_feedback=query.has_feedback,
    )
    page = await services_of(request).history.predictions(
        filters, caller_of(request), limit=query.limit, cursor=query.cursor
    )
    items = [serializers.remembered(found) for found in page.items]
    return serializers.json_response({"items": items, "next_cursor": page.next_cursor})


@router.get(
    "/v1/predictions/{prediction_id}",
    responses={200: {"model": RememberedPrediction}},
)
@requires(Role.CLIENT, errors=(404, 422))
async def prediction(request: Request, prediction_id: UUID) -> Response:
    """A stored prediction with its feedback."""
    found = await services_of(request).history.prediction(prediction_id, caller_of(request))
    return serializers.json_response(serializers.remembered(found))


async def _explained(request: Request, answer: Answer) -> Answer:
    """Add a second opinion to an answer, null if none can be had now: the prediction is stored, so nothing may fail it.

    It is never kept with the answer: a replay computes it again.
    """
    content = orjson.loads(answer.body)
    opinions = services_of(request).label_suggestions
    try:
        found = await while_connected(
            request.receive, opinions.suggest(UUID(content["id"]), caller_of(request))
        )
        content["second_opinion"] = serializers.opinion(found)
    except ServingError:
        content["second_opinion"] = None
    return replace(answer, body=serializers.encode(content))
