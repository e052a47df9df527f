"""JSON for the answers that are rendered by hand, because they are measured: predictions and tensors.

Every other answer is rendered by its schema (`response_model`).
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, Final

import orjson
from starlette.responses import Response

from registry.bundles.bundle import LABELS
from serving.api.dependencies import Json
from serving.predictions.prediction import Prediction
from serving.predictions.service import Answer, Timing

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z
_STORE_STEP_MS: Final = 10
_NO_TIME: Final = Timing(queue_ms=0, infer_ms=0, store_ms=0)


def encode(content: Any) -> bytes:
    """Return JSON, with ids and times as strings and arrays as lists."""
    return orjson.dumps(content, option=_OPTIONS)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    return Response(encode(content), status, headers, "application/json")


def _prediction(prediction: Prediction, *, with_embedding: bool) -> Json:
    content: Json = {
        "id": prediction.id,
        "text_id": prediction.text_id,
        "sentiment": prediction.label,
        "confidence": round(prediction.confidence, 6),
        "scores": {label: round(score, 6) for label, score in zip(LABELS, prediction.scores, strict=True)},
        "model": prediction.model,
        "model_version": prediction.version,
        "arm": prediction.arm,
        "experiment_id": prediction.experiment_id,
        "user_id": prediction.user_id,
        "predicted_at": prediction.predicted_at,
        "language": prediction.language,
        "supported": prediction.supported,
    }
    if prediction.mostly_unknown:
        content["mostly_unknown"] = True
    if prediction.truncated:
        content["truncated"] = True
    if with_embedding:
        content["embedding"] = prediction.embedding
    return content


def render_one(*, with_embedding: bool) -> Callable[[Sequence[Prediction]], bytes]:
    """Return a function that renders the prediction of a single text."""
    return lambda predictions: encode(_prediction(predictions[0], with_embedding=with_embedding))


def render_many(*, with_embedding: bool) -> Callable[[Sequence[Prediction]], bytes]:
    """Return a function that renders the predictions of a batch."""
    return lambda predictions: encode(
        {"predictions": [_prediction(each, with_embedding=with_embedding) for each in predictions]}
    )


def to_response(
    answer: Answer,
    *,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """Return the prediction service's answer, with its timing in the headers.

    The time to store is rounded up: a text that anybody had sent before is stored faster than a new one.
    """
    timing = answer.timing or _NO_TIME
    headers = {
        **(headers or {}),
        "Server-Timing": f"queue;dur={timing.queue_ms:.2f}, infer;dur={timing.infer_ms:.2f}, "
        f"store;dur={ceil(timing.store_ms / _STORE_STEP_MS) * _STORE_STEP_MS}",
    }
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(answer.body, status or answer.status, headers, media_type)
