"""Fakes of an encoder's replicas and of what observes a batcher."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from db.schema.tables import DIMENSIONS
from serving.errors import ModelNotReady
from serving.inference.dispatcher import Inference, InferenceItem

_WORDS = {"good": 2, "great": 2, "love": 2, "bad": 0, "broke": 0, "hate": 0}
_LONGEST = 2_000
_GERMAN = {"gut", "ist", "nicht"}


def vector_of(text: str) -> NDArray[np.float32]:
    """Return a unit vector [384]; texts that share words are near each other."""
    seeds = [
        int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") for word in text.lower().split()
    ]
    total = np.stack([np.random.default_rng(seed).standard_normal(DIMENSIONS) for seed in seeds]).sum(axis=0)
    return np.asarray(total / np.linalg.norm(total), np.float32)


class FakeEncoderClient:
    """Scores texts by a handful of words; `fault`, while it is set, is the result of every text."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fault: Exception | None = None
        self.broken_versions: set[str] = set()

    async def infer(self, items: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        """Return an inference or an exception for each item."""
        self.batches.append(len(items))
        return [self.fault or self._fault(item) or self._infer(item.text) for item in items]

    def _fault(self, item: InferenceItem) -> Exception | None:
        broken = item.record is not None and item.record.version in self.broken_versions
        return ModelNotReady("its head is broken") if broken else None

    def _infer(self, text: str) -> Inference:
        top = next((_WORDS[word] for word in text.lower().split() if word in _WORDS), 1)
        scores = [0.1, 0.1, 0.1]
        scores[top] = 0.8
        foreign = not _GERMAN.isdisjoint(text.lower().split())
        return Inference(
            scores=(scores[0], scores[1], scores[2]),
            embedding=vector_of(text).astype("<f2").tobytes(),
            tokens=len(text.split()),
            truncated=len(text) > _LONGEST,
            unknown=not any(character.isascii() and character.isalnum() for character in text),
            language="de" if foreign else "en",
            foreign=foreign,
        )


class FakeBatchObserver:
    """Keeps the size of each batch, and the last weight that was waiting."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.waiting = 0

    def observe_batch(self, items: int, seconds: float) -> None:
        self.batches.append(items)

    def observe_waiting(self, weight: int) -> None:
        self.waiting = weight
