"""Clusters of texts by meaning, and the words that distinguish them. Pure functions.

Computes with numpy's matrix products, because scipy's k-means holds the GIL and would block other threads.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from registry.analysis.words import content_words

# A cluster of fewer texts isn't meaningful.
MIN_CLUSTER_SIZE: Final = 8
_ITERATIONS: Final = 30
# A start may be unlucky, so the best of several is kept.
_STARTS: Final = 3
_PRIOR: Final = 0.1
# A word with a smaller z-score may be more frequent by chance.
_LEAST_Z: Final = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCluster:
    """The rows of a cluster's texts, int64 [m], nearest to its centre first, with their cosines to it [m]."""

    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]


def cluster_vectors(vectors: NDArray[np.float32], *, max_clusters: int, seed: int = 0) -> list[TextCluster]:
    """Cluster unit vectors [n, d] into at most `max_clusters` groups, the largest first.

    There are so few that a cluster has `MIN_CLUSTER_SIZE` texts or more on average.

    Spherical k-means (Dhillon & Modha, Machine Learning 42, 2001), started by k-means++ (Arthur & Vassilvitskii, 2007).
    """
    if not len(vectors):
        return []
    random = np.random.default_rng(seed)
    count = max(1, min(max_clusters, len(vectors) // MIN_CLUSTER_SIZE))
    runs = [_run_k_means(vectors, _choose_centres(vectors, count, random)) for _ in range(_STARTS)]
    labels, cosines = max(runs, key=lambda run: float(run[1].sum()))
    clusters = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-cosines[rows], kind="stable")]
        clusters.append(TextCluster(rows=rows, cosines=cosines[rows]))
    return sorted(clusters, key=lambda cluster: -len(cluster.rows))


def find_distinctive_words(
    texts: Sequence[str],
    clusters: Sequence[TextCluster],
    *,
    background: Sequence[str] = (),
    limit: int = 8,
) -> list[list[str]]:
    """Return for each cluster the words that its texts have more often than the others', most distinctive first.

    Ranks by the z-score of the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi & Quinn, Political
    Analysis 16, 2008), times the word's inverse document frequency, so that frequent words tell nothing. Counts texts,
    not occurrences. `background`: texts that the clusters are compared with besides each other. A cluster that nothing
    sets apart gets its most frequent words.
    """
    bags = [content_words(text) for text in texts]
    others = [content_words(text) for text in set(background).difference(texts)]
    whole = Counter(word for bag in (*bags, *others) for word in bag)
    compared = len(bags) + len(others)
    distinctive: list[list[str]] = []
    for cluster in clusters:
        inside = Counter(word for row in cluster.rows for word in bags[row])
        # A word of a single text doesn't describe a cluster of many.
        words = [word for word, count in inside.items() if count >= min(2, len(cluster.rows))]
        if not words:
            distinctive.append([])
            continue
        counts = np.array([inside[word] for word in words], np.float64)
        totals = np.array([whole[word] for word in words], np.float64)
        scores = _log_odds_z(counts, totals, inside.total(), whole.total())
        scores = np.where(scores >= _LEAST_Z, scores * np.log(compared / totals), 0.0)
        if not scores.any():
            scores = counts
        order = sorted(range(len(words)), key=lambda index: (-scores[index], words[index]))
        distinctive.append([words[index] for index in order if scores[index] > 0][:limit])
    return distinctive


def _run_k_means(
    vectors: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the cluster of each row, and the row's cosine to its centre."""
    labels = np.full(len(vectors), -1)
    for _ in range(_ITERATIONS):
        nearest = (vectors @ centres.T).argmax(axis=1)
        if (nearest == labels).all():
            break
        labels = nearest
        centres = _mean_directions(vectors, labels, centres)
    return labels, (vectors @ centres.T)[np.arange(len(vectors)), labels]


def _choose_centres(
    vectors: NDArray[np.float32], count: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Draw centres by k-means++."""
    chosen = [int(random.integers(len(vectors)))]
    distance = np.maximum(1 - vectors @ vectors[chosen[0]], 0.0).astype(np.float64)
    while len(chosen) < count and distance.sum() > 0:
        chosen.append(int(random.choice(len(vectors), p=distance / distance.sum())))
        distance = np.minimum(distance, np.maximum(1 - vectors @ vectors[chosen[-1]], 0.0))
    return vectors[chosen]


def _mean_directions(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], before: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the directions of the clusters' means; an empty cluster keeps its centre."""
    sums = (np.arange(len(before))[:, None] == labels[None, :]).astype(np.float32) @ vectors
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    centres: NDArray[np.float32] = np.where(norms > 0, sums / np.where(norms > 0, norms, 1), before)
    return centres


def _log_odds_z(
    counts: NDArray[np.float64], totals: NDArray[np.float64], inside: int, total: int
) -> NDArray[np.float64]:
    """Return the z-scores of words with `counts` in a cluster of `inside` words, and `totals` of all `total` words."""
    # The prior counts one word more than there are, which prevents a division by 0 if all texts are equal.
    others, prior, mass = totals - counts, _PRIOR * totals, _PRIOR * (total + 1)
    ratio = np.log((counts + prior) / (inside + mass - counts - prior)) - np.log(
        (others + prior) / (total - inside + mass - others - prior)
    )
    scores: NDArray[np.float64] = ratio / np.sqrt(1 / (counts + prior) + 1 / (others + prior))
    return scores
