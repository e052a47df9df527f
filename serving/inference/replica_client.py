"""The gateway's view of all replicas of an encoder. One call carries one batch by value, texts in, float bytes out."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import structlog
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from registry.bundles.bundle import LABELS
from registry.store.records import VersionRecord
from serving.core.tracing import Spans
from serving.errors import ModelNotReady, NotReady
from serving.inference.dispatcher import Inference, InferenceItem
from serving.inference.messages import InferenceReply, InferenceRequest, summarize_faults

_UNSCORED = (0.0, 0.0, 0.0)

log = structlog.get_logger(__name__)


class Calls(Protocol):
    """How a replica is called: in this process, or through a Ray Serve handle."""

    async def infer(self, question: InferenceRequest) -> InferenceReply:
        """`Replica.infer`."""
        ...


class ReplicaHandle:
    """Calls whichever replica Ray Serve chooses, by value over gRPC.

    A replica that dies takes its batch along: those rows get `NotReady`, never another's answer.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(_by_reference=False)

    async def infer(self, question: InferenceRequest) -> InferenceReply:
        """`Replica.infer` on one of the replicas."""
        try:
            reply: InferenceReply = await self._handle.infer.remote(question)
        except (RayError, RayServeException, ConnectionError) as error:
            raise NotReady(f"the encoder replica is gone ({type(error).__name__}): send again") from error
        return reply


Key: TypeAlias = tuple[str, str | None]


class ReplicaClient:
    """The gateway's `Encoders` over one kind of replica. What is in flight already is waited for, not asked again."""

    def __init__(self, calls: Calls, *, spans: Spans | None = None) -> None:
        self._calls = calls
        self._spans = spans
        self._flying: dict[Key, asyncio.Future[Inference | Exception]] = {}

    async def infer(self, asks: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        """One remote call for what none of the calls in flight will answer; nothing is computed twice in it."""
        keys = [(ask.text, ask.record.digest if ask.record else None) for ask in asks]
        loop = asyncio.get_running_loop()
        fresh = {key: ask.record for key, ask in zip(keys, asks, strict=True) if key not in self._flying}
        self._flying.update((key, loop.create_future()) for key in fresh)
        waited = [self._flying[key] for key in keys]
        if fresh:
            await self._ask(fresh, asks, bulk=bulk)
        return [await future for future in waited]

    async def _ask(
        self, fresh: Mapping[Key, VersionRecord | None], asks: Sequence[InferenceItem], *, bulk: bool
    ) -> None:
        """Call once, and give every key's future its result; an error of the call is everybody's result."""
        results: Sequence[Inference | Exception] = [NotReady("the call was given up: send again")] * len(
            fresh
        )
        try:
            if self._spans is None:
                results = await self._call(fresh, asks, bulk=bulk)
            else:
                with self._spans.batch(
                    "infer", (ask.request_id for ask in asks), **{"valence.texts": len(fresh)}
                ) as traceparent:
                    results = await self._call(fresh, asks, bulk=bulk, traceparent=traceparent)
        except Exception as error:
            results = [error] * len(fresh)
        finally:
            for key, result in zip(fresh, results, strict=True):
                self._flying.pop(key).set_result(result)

    async def _call(
        self,
        fresh: Mapping[Key, VersionRecord | None],
        asks: Sequence[InferenceItem],
        *,
        bulk: bool,
        traceparent: str | None = None,
    ) -> Sequence[Inference | Exception]:
        rows: dict[str, int] = {}
        versions: dict[str, int] = {}
        records: list[VersionRecord] = []
        pairs: list[tuple[int, int]] = []
        asked: list[tuple[int, int | None]] = []
        for (text, digest), record in fresh.items():
            row = rows.setdefault(text, len(rows))
            if record is None or digest is None:
                asked.append((row, None))
                continue
            if digest not in versions:
                versions[digest] = len(records)
                records.append(record)
            asked.append((row, len(pairs)))
            pairs.append((row, versions[digest]))
        question = InferenceRequest(
            texts=list(rows),
            versions=records,
            pairs=np.array(pairs, np.uint16).tobytes(),
            bulk=bulk,
            batch=os.urandom(8).hex(),
            traceparent=traceparent,
        )
        try:
            reply = await self._calls.infer(question)
        except Exception as error:
            log.warning("batch.failed", batch=question.batch, error=str(error), requests=_requests(asks))
            raise
        if reply.text_faults or reply.score_faults:
            log.warning(
                "batch.faults", batch=question.batch, requests=_requests(asks), **summarize_faults(reply)
            )
        return _unpacked(reply, len(rows), asked)


def _requests(asks: Sequence[InferenceItem]) -> list[str]:
    """The ids of a batch's requests, for the log: the replica knows the batch alone."""
    return list(dict.fromkeys(ask.request_id for ask in asks if ask.request_id is not None))


def _unpacked(
    reply: InferenceReply, size: int, asked: Sequence[tuple[int, int | None]]
) -> list[Inference | Exception]:
    width = len(reply.embeddings) // size
    embeddings = memoryview(reply.embeddings)
    scores = np.frombuffer(reply.scores, np.float32).reshape(-1, len(LABELS)).tolist()
    tokens = np.frombuffer(reply.tokens, np.uint16).tolist()
    truncated = np.frombuffer(reply.truncated, np.bool_).tolist()
    answers: list[Inference | Exception] = []
    for row, pair in asked:
        fault = reply.text_faults.get(row) or (None if pair is None else reply.score_faults.get(pair))
        if fault is not None:
            answers.append(ModelNotReady(fault))
            continue
        answers.append(
            Inference(
                scores=_UNSCORED if pair is None else (scores[pair][0], scores[pair][1], scores[pair][2]),
                embedding=bytes(embeddings[row * width : (row + 1) * width]),
                tokens=tokens[row],
                truncated=truncated[row],
            )
        )
    return answers
