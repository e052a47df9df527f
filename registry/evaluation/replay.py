"""The sample of stored texts on which a candidate is compared with the champion, and the comparison. Pure functions.

Knows vectors, probabilities and ids, never a text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from registry.analysis.clusters import cluster_vectors
from registry.bundles.bundle import LABELS
from registry.evaluation.metrics import Probabilities
from registry.evaluation.report import CorrectedAccuracy, Disagreement, Latency, Replay, Stratum

CLUSTERS = 20
FURTHEST = 20


def stratify(
    vectors: NDArray[np.float32], judged: NDArray[np.bool_], *, size: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a sample of at most `size` rows, int64 [m], and return it with the cluster of each row.

    Clusters the unit vectors, float32 [n, d]. A cluster gives rows in proportion to its size, at least one, and
    `judged` rows, bool [n], before any other.
    """
    if not len(vectors) or size < 1:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rng = np.random.default_rng(seed)
    clusters = np.zeros(len(vectors), np.int64)
    for label, cluster in enumerate(cluster_vectors(vectors, max_clusters=CLUSTERS, seed=seed)):
        clusters[cluster.rows] = label
    # Judged rows come first; both kinds are in random order.
    order = np.lexsort((rng.random(len(vectors)), ~judged))
    share = min(1.0, size / len(vectors))
    rows = [
        (members := order[clusters[order] == cluster])[: max(1, round(share * len(members)))]
        for cluster in np.unique(clusters)
    ]
    # One row a cluster may be more than the size allows.
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
    """Compare both on the same m texts: probabilities [m, 3]; `corrected` has the label from feedback, or None."""
    candidate_labels, champion_labels = candidate.argmax(axis=1), champion.argmax(axis=1)
    flipped = candidate_labels != champion_labels
    distance = np.abs(candidate - champion).sum(axis=1) / 2
    far = [int(row) for row in np.argsort(-distance, kind="stable")[:furthest] if distance[row] > 0]
    labelled = [row for row, label in enumerate(corrected) if label is not None]
    right = np.array([LABELS.index(label) for label in corrected if label is not None], dtype=np.int64)
    return Replay(
        champion_version=champion_version,
        champion_bundle=champion_bundle,
        champion_latency=champion_latency,
        texts=len(text_ids),
        flips=int(flipped.sum()),
        matrix={
            before: {
                after: int(((champion_labels == i) & (candidate_labels == j)).sum())
                for j, after in enumerate(LABELS)
            }
            for i, before in enumerate(LABELS)
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
            texts=len(labelled),
            candidate=round(float((candidate_labels[labelled] == right).mean()), 6),
            champion=round(float((champion_labels[labelled] == right).mean()), 6),
        )
        if labelled
        else None,
        furthest=tuple(
            Disagreement(
                text_id=text_ids[row],
                distance=round(float(distance[row]), 6),
                champion=LABELS[champion_labels[row]],
                candidate=LABELS[candidate_labels[row]],
            )
            for row in far
        ),
    )
