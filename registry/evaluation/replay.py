"""Which stored texts a candidate is tried on, and how its answers differ from the champion's. Pure.

Knows vectors, probabilities and ids; never a text, and never where they came from.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from registry.bundles.bundle import LABELS
from registry.evaluation.metrics import Probabilities
from registry.evaluation.report import CorrectedAccuracy, Disagreement, Latency, Replay, Stratum

CLUSTERS = 20
FURTHEST = 20
# Fewer texts to a cluster say nothing of it.
_LEAST = 8


def stratify(
    vectors: NDArray[np.float32], judged: NDArray[np.bool_], *, size: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a sample, int64 [m], m ≤ `size`, and the cluster of each.

    Clusters by k-means (Lloyd, started by k-means++) on `vectors`, float32 [n, d]. A cluster gives rows in
    proportion to its size, at least one, and those that are `judged`, bool [n], before any other.
    """
    if not len(vectors) or size < 1:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rng = np.random.default_rng(seed)
    clusters = _clusters(vectors, rng)
    # Judged rows first, each kind in random order.
    order = np.lexsort((rng.random(len(vectors)), ~judged))
    share = min(1.0, size / len(vectors))
    rows = [
        (members := order[clusters[order] == cluster])[: max(1, round(share * len(members)))]
        for cluster in np.unique(clusters)
    ]
    # The least of one for each cluster may have gone past the size.
    chosen = np.concatenate(rows)
    if len(chosen) > size:
        chosen = chosen[np.lexsort((rng.random(len(chosen)), ~judged[chosen]))][:size]
    return chosen, clusters[chosen]


def compare(
    *,
    candidate: Probabilities,
    champion: Probabilities,
    text_ids: Sequence[str],
    clusters: NDArray[np.int64],
    judged: NDArray[np.bool_],
    corrected: Sequence[str | None],
    champion_version: str,
    champion_bundle: str,
    champion_latency: Latency,
    furthest: int = FURTHEST,
) -> Replay:
    """Both on the same m texts: probabilities [m, 3]; `corrected` is the label that feedback tells, or None."""
    ours, theirs = candidate.argmax(axis=1), champion.argmax(axis=1)
    flipped = ours != theirs
    distance = np.abs(candidate - champion).sum(axis=1) / 2
    far = [int(row) for row in np.argsort(-distance, kind="stable")[:furthest] if distance[row] > 0]
    told = [row for row, label in enumerate(corrected) if label is not None]
    right = np.array([LABELS.index(label) for label in corrected if label is not None], dtype=np.int64)
    return Replay(
        champion_version=champion_version,
        champion_bundle=champion_bundle,
        champion_latency=champion_latency,
        texts=len(text_ids),
        flips=int(flipped.sum()),
        matrix={
            said: {now: int(((theirs == place) & (ours == other)).sum()) for other, now in enumerate(LABELS)}
            for place, said in enumerate(LABELS)
        },
        strata=tuple(
            Stratum(
                texts=int((clusters == cluster).sum()),
                judged=int((judged & (clusters == cluster)).sum()),
                flips=int((flipped & (clusters == cluster)).sum()),
            )
            for cluster in np.unique(clusters)
        ),
        corrected=CorrectedAccuracy(
            texts=len(told),
            candidate=round(float((ours[told] == right).mean()), 6),
            champion=round(float((theirs[told] == right).mean()), 6),
        )
        if told
        else None,
        furthest=tuple(
            Disagreement(
                text_id=text_ids[row],
                distance=round(float(distance[row]), 6),
                champion=LABELS[theirs[row]],
                candidate=LABELS[ours[row]],
            )
            for row in far
        ),
    )


def _clusters(vectors: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    count = min(CLUSTERS, len(vectors) // _LEAST)
    if count < 2:
        return np.zeros(len(vectors), dtype=np.int64)
    with warnings.catch_warnings():
        # A cluster that runs empty is no fault: there are fewer, then.
        warnings.simplefilter("ignore", UserWarning)
        _, found = kmeans2(vectors.astype(np.float64), count, iter=20, minit="++", rng=rng)
    clusters: NDArray[np.int64] = found.astype(np.int64)
    return clusters
