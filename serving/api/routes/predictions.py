"""Predictions: make one or many, read one or a page of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from db.predictions.predictions import Prediction as StoredPrediction
from db.predictions.predictions import PredictionFilters, PredictionPage
from serving.api import serializers
from serving.api.dependencies import get_caller, get_services
from serving.api.middleware import while_connected
from serving.api.parameters import IDEMPOTENCY_KEY, to_prediction_input
from serving.api.schemas.predictions import (
    PredictBatchRequest,
    PredictBatchResponse,
    PredictionListResponse,
    PredictionQuery,
    PredictRequest,
    StoredPredictionResponse,
)
from serving.api.schemas.second_opinions import ExplainedPredictionResponse, SecondOpinionResponse
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role
from serving.errors import ServingError
from serving.predictions.prediction import Prediction, PredictionInput
from serving.predictions.service import Answer
from serving.privacy.masking import TEXT, TEXTS

router = APIRouter(route_class=GuardedRoute, tags=["predictions"])


async def run(
    request: Request,
    ask: PredictionInput,
    render: Callable[[Sequence[Prediction]], bytes],
    *,
    extra: int = 0,
) -> Answer:
    """Predict while the client is connected, and record how long each step took; `extra` is other work, in texts."""
    services, caller = get_services(request), get_caller(request)
    services.rate_limiter.take(caller, len(ask.texts) + extra)
    answer = await while_connected(request.receive, services.predictions.predict(ask, caller, render))
    if answer.timing is not None:
        services.metrics.observe_timing(answer.timing)
    return answer


@router.post(
    "/v1/predict",
    status_code=201,
    responses={201: {"model": ExplainedPredictionResponse}},
    openapi_extra=IDEMPOTENCY_KEY,
)
@requires(
    Role.CLIENT,
    errors=(
        404,
        409,
    ),
    reads=0,
    sheds=True,
)
async def predict(request: Request, body: Parsed[PredictRequest]) -> Response:
    """Predict the sentiment of a text and store it."""
    ask = to_prediction_input(request, (body.text,), body, TEXT)
    render = serializers.render_one(with_embedding=body.return_embedding)
    answer = await run(request, ask, render, extra=1 if body.explain else 0)
    return serializers.to_response(await _explained(request, answer) if body.explain else answer)


@router.post(
    "/v1/predict/batch",
    status_code=201,
    responses={201: {"model": PredictBatchResponse}},
    openapi_extra=IDEMPOTENCY_KEY,
)
@requires(
    Role.CLIENT,
    errors=(
        404,
        409,
    ),
    reads=0,
)
async def predict_batch(request: Request, body: Parsed[PredictBatchRequest]) -> Response:
    """Predict the sentiment of up to 1,000 texts and store them."""
    ask = to_prediction_input(request, body.texts, body, TEXTS)
    return serializers.to_response(
        await run(request, ask, serializers.render_many(with_embedding=body.return_embedding))
    )


@router.get("/v1/predictions", response_model=PredictionListResponse)
@requires(Role.CLIENT, errors=(422,))
async def list_predictions(request: Request, query: Annotated[PredictionQuery, Query()]) -> PredictionPage:
    """List stored predictions, newest first."""
    filters = PredictionFilters(**query.model_dump(exclude={"limit", "cursor"}))
    return await get_services(request).history.list_predictions(
        filters, get_caller(request), limit=query.limit, cursor=query.cursor
    )


@router.get("/v1/predictions/{prediction_id}", response_model=StoredPredictionResponse)
@requires(Role.CLIENT, errors=(404, 422))
async def get_prediction(request: Request, prediction_id: UUID) -> StoredPrediction:
    """Return a stored prediction with its feedback."""
    return await get_services(request).history.get_prediction(prediction_id, get_caller(request))


async def _explained(request: Request, answer: Answer) -> Answer:
    """Add a second opinion, null if there is none now: the prediction is stored, so the answer must not fail.

    It isn't stored with the answer: a replay computes it again.
    """
    content = orjson.loads(answer.body)
    opinions = get_services(request).in_space().label_suggestions
    try:
        suggestion = await while_connected(
            request.receive, opinions.suggest(UUID(content["id"]), get_caller(request))
        )
        content["second_opinion"] = SecondOpinionResponse.model_validate(suggestion).model_dump()
    except ServingError:
        content["second_opinion"] = None
    return replace(answer, body=serializers.encode(content))
