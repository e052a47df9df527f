"""What was computed or stored becomes JSON: one place for the names of the fields and how numbers are cut."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
from starlette.responses import Response

from db.predictions.feedback import Judgement
from db.predictions.predictions import Prediction as StoredPrediction
from db.search.similarity import Neighbour
from registry.bundles.bundle import LABELS
from serving.api.dependencies import Json
from serving.predictions.prediction import Prediction
from serving.predictions.service import Answer, Timing
from serving.search.service import Counts, Found

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z
_NO_TIME: Final = Timing(queue_ms=0, infer_ms=0, store_ms=0)


def encode(content: Any) -> bytes:
    """JSON; ids and times as strings, arrays as lists."""
    return orjson.dumps(content, option=_OPTIONS)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(encode(content), status, headers, "application/json")


def prediction(made: Prediction, *, with_embedding: bool) -> Json:
    """One prediction as the request that made it is answered."""
    content: Json = {
        "id": made.id,
        "text_id": made.text_id,
        "sentiment": made.label,
        "confidence": round(made.confidence, 6),
        "scores": {label: round(score, 6) for label, score in zip(LABELS, made.scores, strict=True)},
        "model": made.model,
        "model_version": made.version,
        "arm": made.arm,
        "experiment_id": made.experiment_id,
        "user_id": made.user_id,
        "predicted_at": made.predicted_at,
    }
    if made.truncated:
        content["truncated"] = True
    if with_embedding:
        content["embedding"] = made.embedding
    return content


def one(*, with_embedding: bool) -> Callable[[Sequence[Prediction]], bytes]:
    """Renders a request for a single text."""
    return lambda made: encode(prediction(made[0], with_embedding=with_embedding))


def many(*, with_embedding: bool) -> Callable[[Sequence[Prediction]], bytes]:
    """Renders a request for several texts."""
    return lambda made: encode(
        {"predictions": [prediction(each, with_embedding=with_embedding) for each in made]}
    )


def answered(answer: Answer, *, status: int | None = None) -> Response:
    """The answer of the gateway, with where its time went."""
    timing = answer.timing or _NO_TIME
    headers = {
        "Server-Timing": f"queue;dur={timing.queue_ms:.2f}, infer;dur={timing.infer_ms:.2f}, "
        f"store;dur={timing.store_ms:.2f}"
    }
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(answer.body, status or answer.status, headers, "application/json")


def stored(found: StoredPrediction) -> Json:
    """One stored prediction, without its text and its feedback."""
    content: Json = {
        "id": found.id,
        "text_id": found.text_id,
        "sentiment": found.label,
        "confidence": _cut(found.confidence),
        "scores": {label: _cut(found.scores[label]) for label in LABELS},
        "model": found.model,
        "model_version": found.version,
        "arm": found.arm,
        "experiment_id": found.experiment_id,
        "user_id": found.user_id,
        "predicted_at": found.predicted_at,
    }
    if found.truncated:
        content["truncated"] = True
    return content


def _cut(stored: float) -> float:
    """A stored float32 as its first answer had it: PostgreSQL tells the shortest decimal, which rounds otherwise."""
    return round(float(np.float32(stored)), 6)


def remembered(found: StoredPrediction) -> Json:
    """One stored prediction with its text and its feedback."""
    return {**stored(found), "text": found.text, "feedback": [judgement(each) for each in found.feedback]}


def judgement(given: Judgement) -> Json:
    """Feedback as it stands."""
    return {
        "prediction_id": given.prediction_id,
        "is_correct": given.is_correct,
        "label": given.label,
        "comment": given.comment,
        "created_at": given.created_at,
        "updated_at": given.updated_at,
    }


def found(result: Found, counts: Counts | None) -> Json:
    """The answer of a search."""
    content: Json = {
        "results": [neighbour(each) for each in result.neighbours.results],
        "exact": result.neighbours.exact,
        "complete": result.neighbours.complete,
    }
    if result.ranks is not None:
        for text in content["results"]:
            ranks = result.ranks[text["text_id"]]
            text["ranks"] = {
                "score": round(ranks.score, 6),
                "meaning": ranks.meaning,
                "keywords": ranks.keywords,
            }
    if counts is not None:
        content["counts"] = {
            "sentiments": counts.sentiments,
            "versions": [
                {"model": model, "model_version": version, "sentiments": sentiments}
                for (model, version), sentiments in sorted(counts.versions.items())
            ],
        }
    return content


def neighbour(near: Neighbour) -> Json:
    """One text that is near to another."""
    return {
        "text_id": near.text_id,
        "text": near.text,
        "similarity": round(near.similarity, 6),
        "predictions": [stored(each) for each in near.predictions],
        "feedback": [judgement(each) for each in near.feedback],
    }
