"""What the replicas compute for a request: through which door, on which encoder, and how the parts are joined.

Knows no HTTP, database, traffic or Ray; an `Encoders` is all that it sees of a kind of replica.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from operator import itemgetter
from typing import Protocol

from registry.store.records import VersionRecord
from serving.core.catalog import Placement
from serving.core.logs import REQUEST_ID
from serving.inference.batcher import Batcher, BatchObserver, BatchResult

# A request of more texts is bulk: it yields to smaller ones, which wait for none of it.
FEW = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceItem:
    """One text for one version, or for its vector alone: the door's item, and the request that it came by."""

    text: str
    record: VersionRecord | None
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """What a replica says of one text: probabilities of `LABELS`, its vector as float16 bytes, the tokens read."""

    scores: tuple[float, float, float]
    embedding: bytes = field(repr=False)
    tokens: int
    truncated: bool


class EncoderClient(Protocol):
    """The replicas of one encoder."""

    async def infer(self, asks: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        """One remote call for a batch; a fault of one text is that text's alone. `bulk` lets others go first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimits:
    """The sizes of the doors."""

    batch_texts: int = 64
    batches_in_flight: int = 2
    queue_texts: int = 4096
    queue_seconds: float = 2.0
    store_rows: int = 1024
    store_connections: int = 2
    request_seconds: float = 30.0


class Dispatcher:
    """Every text gets its own scores and vector, or the request an error.

    Each encoder has two doors, so that somebody's thousand texts never stand before somebody else's one, and so that
    a slow encoder holds up nobody but those who asked for it.

    Args:
        replicas: the replicas of an encoder, by its digest.
        meter: who watches the door of this name.
    """

    def __init__(
        self,
        replicas: Callable[[str], EncoderClient],
        bounds: BatchLimits,
        meter: Callable[[str], BatchObserver] | None = None,
    ) -> None:
        self._replicas = replicas
        self._bounds = bounds
        self._meter = meter
        self._doors: dict[tuple[str, bool], Batcher[InferenceItem, Inference]] = {}

    async def infer(
        self, texts: Sequence[str], record: VersionRecord | None, place: Placement, *, yields: bool = False
    ) -> BatchResult[Inference]:
        """Scores by a version and vectors of the space, in the order of the texts.

        `yields`: like a request of many texts, let others go first.

        Raises:
            Overloaded: no room at a door.
            ModelNotReady, NotReady: of a replica, or the first fault among the texts.
        """
        bulk = yields or len(texts) > FEW
        # Like lengths travel together: the less is padded.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index])) if bulk else range(len(texts))
        passage = await self._joined([texts[index] for index in order], record, place, bulk=bulk)
        if not bulk:
            return passage
        ordered = sorted(zip(order, passage.results, strict=True), key=itemgetter(0))
        return replace(passage, results=[result for _, result in ordered])

    def require_room(self, place: Placement) -> None:
        """Nothing, if one text more would be let in.

        Raises:
            Overloaded: it would not.
        """
        self._door(place.scorer, bulk=False).require_room()

    async def close(self) -> None:
        """Answer everybody inside, admit nobody more."""
        await asyncio.gather(*(door.close() for door in self._doors.values()))

    async def _joined(
        self, texts: Sequence[str], record: VersionRecord | None, place: Placement, *, bulk: bool
    ) -> BatchResult[Inference]:
        request_id = REQUEST_ID.get()
        asks = [InferenceItem(text=text, record=record, request_id=request_id) for text in texts]
        if place.scorer == place.embedder:
            return await self._door(place.scorer, bulk=bulk).submit(asks)
        scored, embedded = await asyncio.gather(
            self._door(place.scorer, bulk=bulk).submit(asks),
            self._door(place.embedder, bulk=bulk).submit(
                [InferenceItem(text=text, record=None, request_id=request_id) for text in texts]
            ),
        )
        return BatchResult(
            results=[
                replace(score, embedding=vector.embedding)
                for score, vector in zip(scored.results, embedded.results, strict=True)
            ],
            queue_ms=max(scored.queue_ms, embedded.queue_ms),
            run_ms=max(scored.run_ms, embedded.run_ms),
        )

    def _door(self, encoder: str, *, bulk: bool) -> Batcher[InferenceItem, Inference]:
        door = self._doors.get((encoder, bulk))
        if door is None:
            door = self._doors[encoder, bulk] = self._new_door(self._replicas(encoder), bulk=bulk)
        return door

    def _new_door(self, encoders: EncoderClient, *, bulk: bool) -> Batcher[InferenceItem, Inference]:
        bounds = self._bounds
        return Batcher(
            partial(encoders.infer, bulk=bulk),
            batch_weight=bounds.batch_texts,
            slots=bounds.batches_in_flight,
            capacity=bounds.queue_texts,
            longest_wait=inf if bulk else bounds.queue_seconds,
            patience=bounds.request_seconds,
            # A long text takes room: a batch is one message, of 4 MiB at most.
            weigh=lambda ask: 1 + len(ask.text) // 2_000,
            meter=self._meter("bulk" if bulk else "compute") if self._meter else None,
        )
