"""Pure measures: class probabilities against human labels, vectors against those of a space.

Never loads a model, a corpus or a bundle.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registry.bundles.bundle import LABELS

Probabilities = NDArray[np.float32] | NDArray[np.float64]
Labels = NDArray[np.int64]
Vectors = NDArray[np.float32]
Measure = Callable[[Probabilities, Labels], float]

ECE_BINS = 15
NEIGHBOURS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A point estimate with an interval around it."""

    value: float
    low: float
    high: float


def accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """The share of rows whose most probable class is the label; probabilities [n, k], labels int [n]."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def per_class_recall(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """For each class, the share of its rows that are found; NaN for a class without rows."""
    hits = probabilities.argmax(axis=1) == labels
    return {
        name: float(hits[labels == index].mean()) if (labels == index).any() else float("nan")
        for index, name in enumerate(LABELS)
    }


def macro_f1(probabilities: Probabilities, labels: Labels) -> float:
    """The unweighted mean over the classes of F1; a class that is neither there nor predicted counts 0."""
    predicted = probabilities.argmax(axis=1)
    scores = []
    for index in range(len(LABELS)):
        hits = int(((predicted == index) & (labels == index)).sum())
        named = int((predicted == index).sum() + (labels == index).sum())
        scores.append(2 * hits / named if named else 0.0)
    return float(np.mean(scores))


def ece(probabilities: Probabilities, labels: Labels, *, bins: int = ECE_BINS) -> float:
    """Expected calibration error of the top class over bins of equal width (Guo et al., arXiv 1706.04599)."""
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = [
        abs(float(hits[place == index].mean()) - float(confidence[place == index].mean()))
        * float((place == index).mean())
        for index in range(bins)
        if (place == index).any()
    ]
    return float(sum(gaps))


def classification_report(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """Every measure by name, as it goes into a manifest."""
    recalls = {f"recall_{name}": value for name, value in per_class_recall(probabilities, labels).items()}
    measured = {
        "accuracy": accuracy(probabilities, labels),
        "macro_f1": macro_f1(probabilities, labels),
        "ece": ece(probabilities, labels),
        **recalls,
    }
    return {name: round(value, 4) for name, value in measured.items() if np.isfinite(value)} | {
        "texts": float(len(labels))
    }


def classification_report_by_group(
    probabilities: Probabilities, labels: Labels, groups: Mapping[str, NDArray[np.bool_]]
) -> dict[str, float]:
    """`report` of each group of rows that isn't empty, as `group.measure`."""
    return {
        f"{group}.{name}": value
        for group, rows in groups.items()
        if rows.any()
        for name, value in classification_report(probabilities[rows], labels[rows]).items()
    }


def agreement(vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """How vectors [n, d] of unit length agree with those of the space itself.

    Their cosines, mean and worst; the share of the 10 nearest others by the reference that are found again.
    """
    cosines = (vectors * reference).sum(axis=1)
    near, wanted = _nearest(vectors), _nearest(reference)
    again = [len(set(found) & set(row)) / len(row) for found, row in zip(near, wanted, strict=True)]
    return {
        "cosine_mean": round(float(cosines.mean()), 4),
        "cosine_worst": round(float(cosines.min()), 4),
        f"neighbour_recall_{NEIGHBOURS}": round(float(np.mean(again)), 4),
    }


def _nearest(vectors: Vectors) -> NDArray[np.int64]:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    found: NDArray[np.int64] = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    return found


def bootstrap(
    measure: Measure,
    probabilities: Probabilities,
    labels: Labels,
    *,
    rounds: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap over rows (Efron, 1979), deterministic by its seed."""
    rng = np.random.default_rng(seed)
    drawn: Sequence[float] = [
        measure(probabilities[rows], labels[rows])
        for rows in (rng.integers(0, len(labels), len(labels)) for _ in range(rounds))
    ]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=measure(probabilities, labels), low=float(low), high=float(high))


def fit_temperature(logits: NDArray[np.float64], labels: Labels) -> float:
    """The temperature with the least log loss (Guo et al., 2017), by golden-section search."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(axis=1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[rows, labels]).mean())

    ratio = (np.sqrt(5.0) - 1) / 2
    low, high = np.log(0.05), np.log(20.0)
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return round(float(np.exp((low + high) / 2)), 4)
