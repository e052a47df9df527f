"""Measures of class probabilities against human labels, and of vectors against those of a space. Pure functions.

Never loads a model, a corpus or a bundle.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registry.analysis.cosines import mean_and_worst_cosine
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
    """Return the share of rows whose most probable class is the label; probabilities [n, k], labels int [n]."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def per_class_recall(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """Return for each class the share of its rows that are predicted right; NaN for a class without rows."""
    hits = probabilities.argmax(axis=1) == labels
    return {
        name: float(hits[labels == index].mean()) if (labels == index).any() else float("nan")
        for index, name in enumerate(LABELS)
    }


def macro_f1(probabilities: Probabilities, labels: Labels) -> float:
    """Return the unweighted mean of F1 over the classes; a class that is neither present nor predicted counts 0."""
    predicted = probabilities.argmax(axis=1)
    scores = []
    for index in range(len(LABELS)):
        hits = int(((predicted == index) & (labels == index)).sum())
        occurrences = int((predicted == index).sum() + (labels == index).sum())
        scores.append(2 * hits / occurrences if occurrences else 0.0)
    return float(np.mean(scores))


def ece(probabilities: Probabilities, labels: Labels, *, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of the top class, in bins of equal width (Guo et al., arXiv 1706.04599)."""
    confidence = probabilities.max(axis=1)
    hits = probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = [
        abs(float(hits[bin_of == index].mean()) - float(confidence[bin_of == index].mean()))
        * float((bin_of == index).mean())
        for index in range(bins)
        if (bin_of == index).any()
    ]
    return float(sum(gaps))


def classification_report(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """Return every measure by name, as a manifest stores it."""
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
    """Return `classification_report` of each group of rows that isn't empty, as `group.measure`."""
    return {
        f"{group}.{name}": value
        for group, rows in groups.items()
        if rows.any()
        for name, value in classification_report(probabilities[rows], labels[rows]).items()
    }


def agreement(vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """Measure the agreement of unit vectors [n, d] with those of the space itself.

    Gives the mean and the worst cosine, and recall@10: the share of the 10 nearest others by the reference that are
    among the 10 nearest by the vectors.
    """
    mean, worst = mean_and_worst_cosine(vectors, reference)
    pairs = zip(_nearest(vectors), _nearest(reference), strict=True)
    recalls = [len(set(row) & set(expected)) / len(expected) for row, expected in pairs]
    return {
        "cosine_mean": round(mean, 4),
        "cosine_worst": round(worst, 4),
        f"neighbour_recall_{NEIGHBOURS}": round(float(np.mean(recalls)), 4),
    }


def _nearest(vectors: Vectors) -> NDArray[np.int64]:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: NDArray[np.int64] = np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]
    return nearest


def bootstrap(
    measure: Measure,
    probabilities: Probabilities,
    labels: Labels,
    *,
    rounds: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a measure with its percentile bootstrap interval over rows (Efron, 1979), deterministic by `seed`."""
    rng = np.random.default_rng(seed)
    drawn: Sequence[float] = [
        measure(probabilities[rows], labels[rows])
        for rows in (rng.integers(0, len(labels), len(labels)) for _ in range(rounds))
    ]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=measure(probabilities, labels), low=float(low), high=float(high))


def fit_temperature(logits: NDArray[np.float64], labels: Labels) -> float:
    """Return the temperature with the least log loss (Guo et al., 2017), by golden-section search."""
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
