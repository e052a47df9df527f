"""What was computed or stored becomes JSON: one place for the names of the fields and how numbers are cut."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
from starlette.responses import Response

from db.analytics.disagreements import VersionAnswer
from db.analytics.windows import SampledText, Window
from db.predictions.feedback import Judgement
from db.predictions.predictions import Prediction as StoredPrediction
from db.search.similarity import Neighbour
from registry.bundles.bundle import LABELS
from serving.analytics.results import ALPHA, Accuracy, Drift, Review, SampleSummary, Topics, VersionDiff
from serving.api.dependencies import Json
from serving.predictions.prediction import Prediction
from serving.predictions.service import Answer, Timing
from serving.search.label_suggestions import CorrectionSuggestions, LabelSuggestion
from serving.search.service import NeighbourCounts, SearchResult

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


def found(result: SearchResult, counts: NeighbourCounts | None) -> Json:
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


def opinion(found: LabelSuggestion) -> Json:
    """What judged texts nearby say of a prediction."""
    agreement = found.vote.agreement
    return {
        "prediction_id": found.prediction_id,
        "sentiment": found.label,
        "agreement": None if agreement is None else round(agreement, 6),
        "suggests": found.vote.suggests,
        "neighbours": [
            {
                "text_id": voice.neighbour.text_id,
                "text": voice.neighbour.text,
                "similarity": round(voice.neighbour.similarity, 6),
                "sentiment": voice.label,
            }
            for voice in found.neighbours
        ],
        "complete": found.complete,
    }


def corrections(found: CorrectionSuggestions) -> Json:
    """What a correction suggests."""
    return {
        "prediction_id": found.prediction_id,
        "sentiment": found.label,
        "champion": found.champion,
        "min_similarity": found.min_similarity,
        "duplicates": found.duplicates,
        "agreeing": found.agreeing,
        "unpredicted": found.unpredicted,
        "judged": found.judged,
        "fixes": [
            {
                "text_id": fix.neighbour.text_id,
                "text": fix.neighbour.text,
                "similarity": round(fix.neighbour.similarity, 6),
                "prediction": stored(fix.prediction),
            }
            for fix in found.suggestions
        ],
        "complete": found.complete,
    }


def topics(found: Topics) -> Json:
    """The topics of a window."""
    return {
        "model": found.model,
        **_window(found.window),
        "sampled": found.sampled,
        "topics": [
            {
                "texts": topic.texts,
                "share": round(topic.texts / found.sampled, 6),
                "words": topic.words,
                "sentiments": topic.sentiments,
                "accuracy": [_accuracy(each) for each in topic.accuracy],
                "examples": [
                    {**_sampled(example), "similarity": round(similarity, 6)}
                    for example, similarity in topic.examples
                ],
            }
            for topic in found.topics
        ],
    }


def review(found: Review) -> Json:
    """The review queue."""
    return {
        "model": found.model,
        **_window(found.window),
        "candidates": found.candidates,
        "judged": found.judged,
        "items": [
            {
                **_sampled(each.text),
                "score": round(each.score, 6),
                "uncertainty": round(each.uncertainty, 6),
                "density": round(each.density, 6),
                "disagreement": round(each.disagreement, 6),
            }
            for each in found.items
        ],
    }


def diff(found: VersionDiff, one: str, other: str) -> Json:
    """Where two versions differ."""
    matrix = {before: {after: found.matrix.get((before, after), 0) for after in LABELS} for before in LABELS}
    return {
        "model": found.model,
        "from": one,
        "to": other,
        **_window(found.window),
        "compared": sum(found.matrix.values()),
        "differing": sum(texts for (before, after), texts in found.matrix.items() if before != after),
        "matrix": matrix,
        "sampled": found.sampled,
        "clusters": [
            {
                "texts": cluster.texts,
                "words": cluster.words,
                "examples": [
                    {
                        "text_id": example.text_id,
                        "text": example.text,
                        "from": _said(example.one),
                        "to": _said(example.other),
                    }
                    for example in cluster.examples
                ],
            }
            for cluster in found.clusters
        ],
        "complete": found.complete,
    }


def drift(found: Drift) -> Json:
    """How a window differs from a reference."""
    kernel = found.embeddings
    return {
        "model": found.model,
        "window": _mix(found.recent),
        "reference": _mix(found.reference),
        "embeddings": None
        if kernel is None
        else {
            "mmd2": round(kernel.mmd2, 8),
            "bandwidth": round(kernel.bandwidth, 6),
            "p_value": kernel.p_value,
            "permutations": kernel.permutations,
            "drifted": kernel.p_value <= ALPHA,
        },
        "stability": {"sentiments": _rounded(found.labels), "confidences": _rounded(found.confidences)},
        "new": [{**_sampled(text), "nearest": round(nearest, 6)} for text, nearest in found.novel],
    }


def _window(window: Window) -> Json:
    return {"since": window.since, "until": window.until}


def _mix(found: SampleSummary) -> Json:
    return {
        **_window(found.window),
        "sampled": found.sampled,
        "sentiments": found.labels,
        "confidences": found.confidences,
        "confidence": _rounded(found.confidence),
        "versions": found.versions,
    }


def _sampled(found: SampledText) -> Json:
    return {
        "text_id": found.text_id,
        "text": found.text,
        "prediction_id": found.prediction_id,
        "sentiment": found.label,
        "confidence": round(found.confidence, 6),
        "model_version": found.version,
    }


def _said(said: VersionAnswer) -> Json:
    return {
        "prediction_id": said.prediction_id,
        "sentiment": said.label,
        "confidence": round(said.confidence, 6),
    }


def _accuracy(found: Accuracy) -> Json:
    return {
        "model_version": found.version,
        "judged": found.judged,
        "right": found.right,
        "accuracy": round(found.right / found.judged, 6),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
