"""Combine query vectors and fuse rankings: pure functions of vectors and ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import numpy as np

from db.core.binary import Vector

# Rocchio's weights of the query, of the examples it should be like, and of those it should not be like (Manning et al.,
# Introduction to Information Retrieval, 2008, section 9.1.1).
QUERY: Final = 1.0
LIKE: Final = 0.75
UNLIKE: Final = 0.15
RANK_OFFSET: Final = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedText:
    """A text in a fused ranking: its score, and its rank, from 1, in each ranking, None if that one lacks it."""

    text_id: UUID
    score: float
    ranks: Mapping[str, int | None]


def rocchio(query: "Vector | None", like: Sequence[Vector], unlike: Sequence[Vector]) -> "Vector | None":
    """Move the query towards the mean of `like` and away from that of `unlike` (Rocchio, 1971).

    All vectors have unit length, the result too; it is None if the vectors cancel out.
    """
    total = np.zeros(0)
    for weight, vectors in ((QUERY, [query] if query is not None else []), (LIKE, like), (-UNLIKE, unlike)):
        if len(vectors):
            part = weight * np.mean(np.asarray(vectors, np.float64), axis=0)
            total = part if not total.size else total + part
    norm = float(np.linalg.norm(total))
    if norm < 1e-6:
        return None
    moved: Vector = (total / norm).astype(np.float32)
    return moved


def fuse(rankings: Mapping[str, Sequence[UUID]]) -> list[FusedText]:
    """Order the texts of all rankings, best first, by the sum of 1 / (60 + rank) (Cormack et al., SIGIR 2009)."""
    ranks: dict[UUID, dict[str, int | None]] = {}
    for name, ranking in rankings.items():
        for rank, text_id in enumerate(ranking, start=1):
            ranks.setdefault(text_id, dict.fromkeys(rankings))[name] = rank
    fused = [
        FusedText(
            text_id=text_id,
            score=sum(1 / (RANK_OFFSET + rank) for rank in by_ranking.values() if rank is not None),
            ranks=by_ranking,
        )
        for text_id, by_ranking in ranks.items()
    ]
    return sorted(fused, key=lambda each: (-each.score, each.text_id))
