"""Votes of labelled neighbours, and the choice of texts worth labelling. Pure functions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Fewer neighbours give no vote.
QUORUM: Final = 3
NEIGHBOURS: Final = 10
# Of any length, with separators: "48213", "1,299.00", "2026-11-27".
_NUMBER: Final = re.compile(r"\d+(?:[.,:/-]\d+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """A vote on a label: the weight's share for it, and the label with the most weight; None without a quorum."""

    agreement: float | None
    suggests: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Informativeness:
    """The expected gain from labelling each of n texts, float64 [n]: the score and its three parts, each in 0…1."""

    score: NDArray[np.float64]
    uncertainty: NDArray[np.float64]
    density: NDArray[np.float64]
    disagreement: NDArray[np.float64]


def vote(label: str, neighbours: Sequence[str], cosines: Sequence[float]) -> Vote:
    """Weigh the labels of neighbours by their cosines against a label (after Dudani, IEEE SMC-6, 1976)."""
    weights: dict[str, float] = {}
    for neighbour, cosine in zip(neighbours, cosines, strict=True):
        weights[neighbour] = weights.get(neighbour, 0.0) + max(cosine, 0.0)
    total = sum(weights.values())
    if len(neighbours) < QUORUM or total <= 0:
        return Vote(agreement=None, suggests=None)
    # A tie goes to the present label.
    suggests = max(weights, key=lambda each: (weights[each], each == label))
    return Vote(agreement=weights.get(label, 0.0) / total, suggests=suggests)


def score_informativeness(
    scores: NDArray[np.float64],
    vectors: NDArray[np.float32],
    labelled: NDArray[np.float32],
    labels: Sequence[int],
    *,
    supported: NDArray[np.bool_],
    min_cosine: float,
) -> Informativeness:
    """Score n texts of class scores [n, 3] and unit vectors [n, d], given m labelled vectors [m, d] and `labels` [m].

    The score is density × (uncertainty + disagreement) / 2, by information density (Settles & Craven, EMNLP 2008).
    Uncertainty is 1 minus the margin of the best class over the second. Density is the mean cosine to the 10 nearest
    other texts. Disagreement looks at the 10 nearest labelled texts with a cosine of at least `min_cosine`: it is the
    share of their weight that has another class than predicted, 0 with fewer than `QUORUM` such texts, and for a text
    that isn't `supported` [n], on which others have no vote.
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
    if len(labelled):
        cosines = (vectors @ labelled.T).astype(np.float64)
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
        weights = np.take_along_axis(cosines, nearest, axis=1)
        near_enough = (weights >= min_cosine) & supported[:, None]
        weights = np.where(near_enough, np.maximum(weights, 0.0), 0.0)
        others = np.asarray(labels)[nearest] != scores.argmax(axis=1)[:, None]
        total = weights.sum(axis=1)
        disagreement = np.where(
            (total > 0) & (near_enough.sum(axis=1) >= QUORUM),
            (weights * others).sum(axis=1) / np.where(total > 0, total, 1),
            0.0,
        )
    return Informativeness(
        score=density * (uncertainty + disagreement) / 2,
        uncertainty=uncertainty,
        density=density,
        disagreement=disagreement,
    )


def select_diverse(
    score: NDArray[np.float64],
    vectors: NDArray[np.float32],
    texts: Sequence[str],
    *,
    limit: int,
    max_cosine: float,
) -> list[int]:
    """Return rows by falling score, without those that are like a row before them.

    Two texts are alike if their cosine is `max_cosine` or more, or if they differ in case and in numbers only.
    """
    selected: list[int] = []
    forms: set[str] = set()
    for row in np.argsort(-score, kind="stable"):
        if len(selected) == limit:
            break
        form = _NUMBER.sub("0", texts[row].casefold())
        if form in forms:
            continue
        if not selected or float((vectors[selected] @ vectors[row]).max()) < max_cosine:
            selected.append(int(row))
            forms.add(form)
    return selected
