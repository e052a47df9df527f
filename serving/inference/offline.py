"""A version opened outside of serving: what it says of many texts, and what an answer of it costs.

The same encoder and the same head as a replica's, on one thread. Asks no replica for anything.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from registry.bundles.bundle import LABELS
from registry.evaluation.report import Latency
from serving.errors import Invalid
from serving.inference.encoder import Encoder
from serving.inference.heads import Head, Scores, has_answer

_ALONE = 40
_BATCH = 32
_BATCHES = 8
_BETWEEN_RESTS = 64


def no_rest(_seconds: float) -> None:
    """Goes on at once."""


def resting(share: float) -> Callable[[float], None]:
    """Sleeps after so many seconds of work for as long as leaves it this `share` of the time, above 0 and at most 1."""
    return lambda seconds: time.sleep(seconds * (1 / share - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflineScores:
    """What a version says of n texts: `scores` float32 [n, 3], `vectors` float32 [n, d] of unit length."""

    scores: Scores = field(repr=False)
    vectors: NDArray[np.float32] = field(repr=False)


class OfflineScorer:
    """Every text gets a finite answer, or none does.

    Args:
        head: the version's.
        encoder: the version's own; the space's for a version that reads the text itself, as a replica has it.
        beside: the space's encoder, where the version's own isn't of the space: an answer needs both.
        rest: called with the seconds that some texts took, before the next ones.
    """

    def __init__(
        self,
        head: Head,
        encoder: Encoder,
        *,
        beside: Encoder | None = None,
        rest: Callable[[float], None] = no_rest,
    ) -> None:
        self._head = head
        self._encoder = encoder
        self._beside = beside
        self._rest = rest

    def run(self, texts: Sequence[str]) -> OfflineScores:
        """Scores and vectors of the texts, in their order.

        Raises:
            Invalid: the head gives another shape than [n, 3], or no finite answer for some text.
        """
        scores = np.zeros((len(texts), len(LABELS)), np.float32)
        vectors = np.zeros((len(texts), self._encoder.settings.dimensions), np.float32)
        for start in range(0, len(texts), _BETWEEN_RESTS):
            began = time.monotonic()
            for micro in self._encoder.run(texts[start : start + _BETWEEN_RESTS]):
                found = self._head.scores(micro)
                if found.shape != (len(micro.rows), len(LABELS)):
                    raise Invalid(f"the head gives scores of shape {found.shape} for {len(micro.rows)} texts")
                rows = start + micro.rows
                scores[rows], vectors[rows] = found, micro.embedding
            self._rest(time.monotonic() - began)
        if silent := int((~has_answer(scores)).sum()):
            raise Invalid(f"{silent} of {len(texts)} texts got no finite answer")
        return OfflineScores(scores=scores, vectors=vectors)

    def latency(self, texts: Sequence[str]) -> Latency:
        """What an answer costs, from `texts` over and over, in processor time after every shape was seen once."""
        alone = [texts[number % len(texts)] for number in range(_ALONE)]
        batches = [
            [texts[(start * _BATCH + place) % len(texts)] for place in range(_BATCH)]
            for start in range(_BATCHES)
        ]
        asked = [[text] for text in alone] + batches
        for each in asked:
            self._pass(each)
        took = [self._timed(each) for each in asked]
        return Latency(
            engine=str(self._encoder.engine),
            alone_ms=round(1000 * float(np.median(took[:_ALONE])), 4),
            texts_per_second=round(_BATCH * _BATCHES / max(sum(took[_ALONE:]), 1e-9), 2),
        )

    def _timed(self, texts: Sequence[str]) -> float:
        started = time.process_time()
        self._pass(texts)
        return time.process_time() - started

    def _pass(self, texts: Sequence[str]) -> None:
        for micro in self._encoder.run(texts):
            self._head.scores(micro)
        if self._beside is not None:
            for _ in self._beside.run(texts):
                pass


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of texts, in their order: float32 [n, d]."""
    vectors = np.zeros((len(texts), encoder.settings.dimensions), np.float32)
    for micro in encoder.run(texts):
        vectors[micro.rows] = micro.embedding
    return vectors


def cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of vectors of unit length [n, d], row by row; 0 where their widths differ, as no two spaces compare."""
    if ours.shape != theirs.shape:
        return np.zeros(len(ours))
    found: NDArray[np.float64] = (ours.astype(np.float64) * theirs).sum(axis=1)
    return np.clip(found, -1.0, 1.0)
