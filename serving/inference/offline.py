"""Offline inference: a version's scores of many texts, and the cost of an answer.

Runs the same encoder and head as a replica, on one thread. Calls no replica.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

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


def rest_to_share(share: float) -> Callable[[float], None]:
    """Return a function that sleeps after some seconds of work, so that work takes this `share` of the time.

    `share` is above 0 and at most 1.
    """
    return lambda seconds: time.sleep(seconds * (1 / share - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflineScores:
    """A version's results for n texts: `scores` float32 [n, 3], `vectors` float32 [n, d] of unit length."""

    scores: Scores = field(repr=False)
    vectors: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, slots=True)
class OfflineScorer:
    """Gives every text a finite answer, or raises.

    Args:
        head: the version's head.
        encoder: the version's own encoder; the space's encoder for a version that reads the text itself.
        space_encoder: the space's encoder if the version's own isn't of the space, so that an answer needs both.
        rest: is called with the seconds that some texts took, before the next ones.
    """

    head: Head
    encoder: Encoder
    _: KW_ONLY
    rest: Callable[[float], None]
    space_encoder: Encoder | None = None

    def run(self, texts: Sequence[str]) -> OfflineScores:
        """Return scores and vectors of the texts, in their order.

        Raises:
            Invalid: the head's scores aren't of shape [n, 3], or a text has no finite answer.
        """
        scores = np.zeros((len(texts), len(LABELS)), np.float32)
        vectors = np.zeros((len(texts), self.encoder.settings.dimensions), np.float32)
        for start in range(0, len(texts), _BETWEEN_RESTS):
            began = time.monotonic()
            for micro in self.encoder.run(texts[start : start + _BETWEEN_RESTS]):
                chunk = self.head.scores(micro)
                if chunk.shape != (len(micro.rows), len(LABELS)):
                    raise Invalid(f"the head gives scores of shape {chunk.shape} for {len(micro.rows)} texts")
                rows = start + micro.rows
                scores[rows], vectors[rows] = chunk, micro.embedding
            self.rest(time.monotonic() - began)
        if missing := int((~has_answer(scores)).sum()):
            raise Invalid(f"{missing} of {len(texts)} texts got no finite answer")
        return OfflineScores(scores=scores, vectors=vectors)

    def latency(self, texts: Sequence[str]) -> Latency:
        """Measure the cost of an answer in processor time, on `texts` over and over, after one run of every shape."""
        alone = [texts[number % len(texts)] for number in range(_ALONE)]
        batches = [
            [texts[(start * _BATCH + position) % len(texts)] for position in range(_BATCH)]
            for start in range(_BATCHES)
        ]
        runs = [[text] for text in alone] + batches
        for each in runs:
            self._pass(each)
        seconds = [self._timed(each) for each in runs]
        return Latency(
            engine=str(self.encoder.engine),
            alone_ms=round(1000 * float(np.median(seconds[:_ALONE])), 4),
            texts_per_second=round(_BATCH * _BATCHES / max(sum(seconds[_ALONE:]), 1e-9), 2),
        )

    def _timed(self, texts: Sequence[str]) -> float:
        started = time.process_time()
        self._pass(texts)
        return time.process_time() - started

    def _pass(self, texts: Sequence[str]) -> None:
        for micro in self.encoder.run(texts):
            self.head.scores(micro)
        if self.space_encoder is not None:
            for _ in self.space_encoder.run(texts):
                pass


def embed_texts(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of texts, in their order: float32 [n, d]."""
    vectors = np.zeros((len(texts), encoder.settings.dimensions), np.float32)
    for micro in encoder.run(texts):
        vectors[micro.rows] = micro.embedding
    return vectors


def cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosines of unit vectors [n, d], row by row; zeros if the widths differ, since spaces don't compare."""
    if ours.shape != theirs.shape:
        return np.zeros(len(ours))
    cosine: NDArray[np.float64] = (ours.astype(np.float64) * theirs).sum(axis=1)
    return np.clip(cosine, -1.0, 1.0)
