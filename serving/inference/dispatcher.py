"""Inference of a request's texts: which batchers and encoders they pass, and how the parts are joined.

Knows no HTTP, database, traffic or Ray; it sees the replicas of an encoder as an `EncoderClient` alone.
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

# A request of more texts is bulk: it yields to smaller ones, which don't wait for it.
MAX_SMALL_TEXTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceItem:
    """One text for one version, or for its vector alone, with the id of its request.

    `query`: the text is to find others by.
    """

    text: str
    record: VersionRecord | None
    request_id: str | None = None
    query: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """A replica's result for one text: probabilities of `LABELS`, its vector as float16 bytes, the tokens read.

    `unknown`: the encoder knows less than half of them. `foreign`: the text's language is none that the version knows.
    """

    scores: tuple[float, float, float]
    embedding: bytes = field(repr=False)
    tokens: int
    truncated: bool
    unknown: bool
    language: str
    foreign: bool


class EncoderClient(Protocol):
    """Access to all replicas of one encoder."""

    async def infer(self, items: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        """Run a batch by one remote call. An error of one text is its result alone; `bulk` lets others go first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimits:
    """The sizes of the batchers."""

    batch_texts: int = 64
    batches_in_flight: int = 2
    queue_texts: int = 4096
    queue_seconds: float = 2.0
    store_rows: int = 1024
    store_connections: int = 2
    request_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Gives every text its own scores and vector, or the request an error.

    Each encoder has two batchers, so that a bulk request doesn't hold up small ones, and a slow encoder holds up only
    its own requests.

    Args:
        replicas: returns the client of the encoder with this digest.
        observers: returns the observer of the batcher with this name.
    """

    replicas: Callable[[str], EncoderClient]
    limits: BatchLimits
    observers: Callable[[str], BatchObserver]
    _batchers: dict[tuple[str, bool], Batcher[InferenceItem, Inference]] = field(
        default_factory=dict, init=False
    )

    async def infer(
        self,
        texts: Sequence[str],
        record: VersionRecord | None,
        placement: Placement,
        *,
        yields: bool = False,
        query: bool = False,
    ) -> BatchResult[Inference]:
        """Return a version's scores and the vectors of the texts, in their order.

        `yields`: let other requests go first, as a request of many texts does. `query`: the texts are to find others
        by.

        Raises:
            Overloaded: a batcher refuses the texts.
            ModelNotReady, NotReady: from a replica, or the first error among the texts.
        """
        bulk = yields or len(texts) > MAX_SMALL_TEXTS
        # Texts of like length go together, which saves padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index])) if bulk else range(len(texts))
        batch = await self._join([texts[index] for index in order], record, placement, bulk=bulk, query=query)
        if not bulk:
            return batch
        ordered = sorted(zip(order, batch.results, strict=True), key=itemgetter(0))
        return replace(batch, results=[result for _, result in ordered])

    def require_room(self, placement: Placement) -> None:
        """Raise Overloaded unless one more text would be admitted."""
        self._batcher(placement.scorer, bulk=False).require_room()

    async def close(self) -> None:
        """Admit no text any more; return when each that was admitted has its result."""
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))

    async def _join(
        self,
        texts: Sequence[str],
        record: VersionRecord | None,
        placement: Placement,
        *,
        bulk: bool,
        query: bool,
    ) -> BatchResult[Inference]:
        request_id = REQUEST_ID.get()
        items = [
            InferenceItem(text=text, record=record, request_id=request_id, query=query) for text in texts
        ]
        if placement.scorer == placement.embedder:
            return await self._batcher(placement.scorer, bulk=bulk).submit(items)
        scored, embedded = await asyncio.gather(
            self._batcher(placement.scorer, bulk=bulk).submit(items),
            self._batcher(placement.embedder, bulk=bulk).submit(
                [replace(item, record=None) for item in items]
            ),
        )
        return BatchResult(
            results=[
                replace(score, embedding=vector.embedding, unknown=score.unknown or vector.unknown)
                for score, vector in zip(scored.results, embedded.results, strict=True)
            ],
            queue_ms=max(scored.queue_ms, embedded.queue_ms),
            run_ms=max(scored.run_ms, embedded.run_ms),
        )

    def _batcher(self, encoder: str, *, bulk: bool) -> Batcher[InferenceItem, Inference]:
        batcher = self._batchers.get((encoder, bulk))
        if batcher is None:
            batcher = self._batchers[encoder, bulk] = self._new_batcher(self.replicas(encoder), bulk=bulk)
        return batcher

    def _new_batcher(self, client: EncoderClient, *, bulk: bool) -> Batcher[InferenceItem, Inference]:
        limits = self.limits
        return Batcher(
            partial(client.infer, bulk=bulk),
            # A long text weighs more: a batch is one message, of 4 MiB at most.
            weigh=lambda item: 1 + len(item.text) // 2_000,
            observer=self.observers("bulk" if bulk else "compute"),
            batch_weight=limits.batch_texts,
            max_in_flight=limits.batches_in_flight,
            capacity=limits.queue_texts,
            timeout=limits.request_seconds,
            longest_wait=inf if bulk else limits.queue_seconds,
        )
