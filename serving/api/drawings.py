"""What the memory found becomes JSON: opinions, corrections, topics, drift, diffs, the review queue."""

from db.analytics.disagreements import Said
from db.analytics.windows import Sampled, Window
from registry.bundles.bundle import LABELS
from serving.analytics.results import Accuracy, Diff, Drift, Mix, Review, Topics
from serving.analytics.service import ALPHA
from serving.api import serializers
from serving.api.dependencies import Json
from serving.search.label_suggestions import Corrections, Opinion


def opinion(found: Opinion) -> Json:
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
            for voice in found.voices
        ],
        "complete": found.complete,
    }


def corrections(found: Corrections) -> Json:
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
                "prediction": serializers.stored(fix.prediction),
            }
            for fix in found.fixes
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


def diff(found: Diff, one: str, other: str) -> Json:
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


def _mix(found: Mix) -> Json:
    return {
        **_window(found.window),
        "sampled": found.sampled,
        "sentiments": found.labels,
        "confidences": found.confidences,
        "confidence": _rounded(found.confidence),
        "versions": found.versions,
    }


def _sampled(found: Sampled) -> Json:
    return {
        "text_id": found.text_id,
        "text": found.text,
        "prediction_id": found.prediction_id,
        "sentiment": found.label,
        "confidence": round(found.confidence, 6),
        "model_version": found.version,
    }


def _said(said: Said) -> Json:
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
