"""Groups of texts by meaning, and the words that tell them apart. Pure: vectors and texts in, groups out.

Plain products of numpy, which let other threads run meanwhile, as scipy's k-means does not.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Fewer texts to a group say nothing of it.
MIN_CLUSTER_SIZE: Final = 8
_ITERATIONS: Final = 30
# A start may be unlucky: the best of so many is kept.
_STARTS: Final = 3
_WORD: Final = re.compile(r"\w\w+")
_READ: Final = 2_000
_PRIOR: Final = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCluster:
    """Rows of the texts in a group, int64 [m], those nearest its centre first, with their cosines to it [m]."""

    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]


def cluster_vectors(vectors: NDArray[np.float32], *, max_clusters: int, seed: int = 0) -> list[TextCluster]:
    """Cluster unit vectors [n, d] into at most `max_clusters` groups, the largest first.

    A cluster has about `MIN_CLUSTER_SIZE` texts at least.

    Spherical k-means (Dhillon & Modha, Machine Learning 42, 2001), started by k-means++ (Arthur & Vassilvitskii, 2007).
    """
    if not len(vectors):
        return []
    random = np.random.default_rng(seed)
    count = max(1, min(max_clusters, len(vectors) // MIN_CLUSTER_SIZE))
    tries = [_clustered(vectors, _started(vectors, count, random)) for _ in range(_STARTS)]
    labels, cosines = max(tries, key=lambda found: float(found[1].sum()))
    groups = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-cosines[rows], kind="stable")]
        groups.append(TextCluster(rows=rows, cosines=cosines[rows]))
    return sorted(groups, key=lambda group: -len(group.rows))


def find_distinctive_words(
    texts: Sequence[str], groups: Sequence[TextCluster], *, limit: int = 8
) -> list[list[str]]:
    """For each group the words that are in its texts more than in the others', the most telling first.

    By the z-score of the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi & Quinn, Political
    Analysis 16, 2008), counting texts and not occurrences. A text's first 2,000 characters are read. Of a group that
    is alone the most frequent words are told.
    """
    bags = [set(_WORD.findall(text[:_READ].lower())) for text in texts]
    whole = Counter(word for bag in bags for word in bag)
    found: list[list[str]] = []
    for group in groups:
        inside = Counter(word for row in group.rows for word in bags[row])
        # A word of one text alone says nothing of a group of many.
        known = [word for word, count in inside.items() if count >= min(2, len(group.rows))]
        if not known:
            found.append([])
            continue
        here = np.array([inside[word] for word in known], np.float64)
        if len(groups) == 1:
            scores = here
        else:
            everywhere = np.array([whole[word] for word in known], np.float64)
            scores = _z(here, everywhere, sum(inside.values()), whole.total())
        order = sorted(range(len(known)), key=lambda at: (-scores[at], known[at]))
        found.append([known[at] for at in order if scores[at] > 0][:limit])
    return found


def _clustered(
    vectors: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The group of each row, and its cosine to that group's centre."""
    labels = np.full(len(vectors), -1)
    for _ in range(_ITERATIONS):
        nearest = (vectors @ centres.T).argmax(axis=1)
        if (nearest == labels).all():
            break
        labels = nearest
        centres = _centres(vectors, labels, centres)
    return labels, (vectors @ centres.T)[np.arange(len(vectors)), labels]


def _started(vectors: NDArray[np.float32], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    chosen = [int(random.integers(len(vectors)))]
    distance = np.maximum(1 - vectors @ vectors[chosen[0]], 0.0).astype(np.float64)
    while len(chosen) < count and distance.sum() > 0:
        chosen.append(int(random.choice(len(vectors), p=distance / distance.sum())))
        distance = np.minimum(distance, np.maximum(1 - vectors @ vectors[chosen[-1]], 0.0))
    return vectors[chosen]


def _centres(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], before: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The directions of the groups' means; a group that ran empty stays where it was."""
    sums = (np.arange(len(before))[:, None] == labels[None, :]).astype(np.float32) @ vectors
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    centres: NDArray[np.float32] = np.where(norms > 0, sums / np.where(norms > 0, norms, 1), before)
    return centres


def _z(
    here: NDArray[np.float64], everywhere: NDArray[np.float64], inside: int, total: int
) -> NDArray[np.float64]:
    # One word more than there are, so that nothing is divided by 0 where all texts have the same.
    there, prior, mass = everywhere - here, _PRIOR * everywhere, _PRIOR * (total + 1)
    ratio = np.log((here + prior) / (inside + mass - here - prior)) - np.log(
        (there + prior) / (total - inside + mass - there - prior)
    )
    scores: NDArray[np.float64] = ratio / np.sqrt(1 / (here + prior) + 1 / (there + prior))
    return scores
