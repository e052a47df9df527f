"""What judged texts say of those near them: a vote by similarity, and which texts are worth a judgement. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Fewer neighbours than these have no opinion.
QUORUM: Final = 3
NEIGHBOURS: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """`agreement` is the share of the weight that is for what was said; both None without a quorum."""

    agreement: float | None
    suggests: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Informativeness:
    """What feedback on each of n texts would teach, float64 [n]: the score and its three parts, each in 0…1."""

    score: NDArray[np.float64]
    uncertainty: NDArray[np.float64]
    density: NDArray[np.float64]
    disagreement: NDArray[np.float64]


def vote(said: str, labels: Sequence[str], cosines: Sequence[float]) -> Vote:
    """The neighbours' labels, each with the weight of its cosine (after Dudani, IEEE SMC-6, 1976)."""
    weights: dict[str, float] = {}
    for label, cosine in zip(labels, cosines, strict=True):
        weights[label] = weights.get(label, 0.0) + max(cosine, 0.0)
    total = sum(weights.values())
    if len(labels) < QUORUM or total <= 0:
        return Vote(agreement=None, suggests=None)
    # Of equals the one that was said stays.
    suggests = max(weights, key=lambda label: (weights[label], label == said))
    return Vote(agreement=weights.get(said, 0.0) / total, suggests=suggests)


def score_informativeness(
    scores: NDArray[np.float64],
    vectors: NDArray[np.float32],
    judged: NDArray[np.float32],
    labels: Sequence[int],
    *,
    min_cosine: float,
) -> Informativeness:
    """For n texts with class scores [n, 3] and unit vectors [n, d], beside m judged ones [m, d] of known class [m].

    The score is density × (uncertainty + disagreement) / 2, by information density (Settles & Craven, EMNLP 2008):
    uncertainty is 1 less the margin of the best class over the second; density the mean cosine to the 10 nearest
    other texts; disagreement the share of the weight of judged texts of a cosine of `min_cosine` at least, of the 10
    nearest, that were judged otherwise, and 0 where there is none.
    """
    ordered = np.sort(scores, axis=1)
    uncertainty = 1 - (ordered[:, -1] - ordered[:, -2])
    near = (vectors @ vectors.T).astype(np.float64)
    np.fill_diagonal(near, -np.inf)
    count = min(NEIGHBOURS, len(vectors) - 1)
    density = np.zeros(len(vectors))
    if count > 0:
        density = np.clip(np.partition(near, -count, axis=1)[:, -count:].mean(axis=1), 0.0, 1.0)
    disagreement = np.zeros(len(vectors))
    if len(judged):
        cosines = (vectors @ judged.T).astype(np.float64)
        places = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
        weights = np.take_along_axis(cosines, places, axis=1)
        weights = np.where(weights >= min_cosine, np.maximum(weights, 0.0), 0.0)
        others = np.asarray(labels)[places] != scores.argmax(axis=1)[:, None]
        total = weights.sum(axis=1)
        disagreement = np.where(
            total > 0, (weights * others).sum(axis=1) / np.where(total > 0, total, 1), 0.0
        )
    return Informativeness(
        score=density * (uncertainty + disagreement) / 2,
        uncertainty=uncertainty,
        density=density,
        disagreement=disagreement,
    )


def select_diverse(
    score: NDArray[np.float64], vectors: NDArray[np.float32], *, limit: int, max_cosine: float
) -> list[int]:
    """Rows by falling score, without those whose cosine to one before them is `max_cosine` or more."""
    found: list[int] = []
    for row in np.argsort(-score, kind="stable"):
        if len(found) == limit:
            break
        if not found or float((vectors[found] @ vectors[row]).max()) < max_cosine:
            found.append(int(row))
    return found
