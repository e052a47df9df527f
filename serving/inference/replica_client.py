"""The client of an encoder's replicas. One call carries one batch by value: texts there, float bytes back."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import structlog
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from registry.bundles.bundle import LABELS
from registry.store.records import VersionRecord
from serving.core.tracing import Spans
from serving.errors import ModelNotReady, NotReady
from serving.inference.dispatcher import Inference, InferenceItem
from serving.inference.languages import UNDETERMINED
from serving.inference.messages import InferenceReply, InferenceRequest, summarize_faults

_UNSCORED = (0.0, 0.0, 0.0)

log = structlog.get_logger(__name__)


class ReplicaHandle:
    """Calls a replica that Ray Serve chooses, by value over gRPC.

    If a replica dies, the rows of its batch get `NotReady`, never the result of another row.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(_by_reference=False)

    async def infer(self, request: InferenceRequest) -> InferenceReply:
        """Call `Replica.infer` on one of the replicas."""
        try:
            reply: InferenceReply = await self._handle.infer.remote(request)
        except (RayError, RayServeException, ConnectionError) as error:
            raise NotReady(f"the encoder replica is gone ({type(error).__name__}): send again") from error
        return reply


Key: TypeAlias = tuple[str, str | None, bool]


class ReplicaClient:
    """The `EncoderClient` of one encoder. It never sends an item that is already in flight again."""

    def __init__(self, replica: ReplicaHandle, *, spans: Spans | None = None) -> None:
        self._replica = replica
        self._spans = spans
        self._in_flight: dict[Key, asyncio.Future[Inference | Exception]] = {}

    async def infer(self, items: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        """Make one remote call for the items that no call in flight will answer; equal items are computed once."""
        keys = [(item.text, item.record.digest if item.record else None, item.query) for item in items]
        loop = asyncio.get_running_loop()
        fresh = {
            key: item.record for key, item in zip(keys, items, strict=True) if key not in self._in_flight
        }
        self._in_flight.update((key, loop.create_future()) for key in fresh)
        futures = [self._in_flight[key] for key in keys]
        if fresh:
            await self._resolve(fresh, items, bulk=bulk)
        return [await future for future in futures]

    async def _resolve(
        self, fresh: Mapping[Key, VersionRecord | None], items: Sequence[InferenceItem], *, bulk: bool
    ) -> None:
        """Call once and resolve the future of every key; an error of the call is the result of each."""
        results: Sequence[Inference | Exception] = [NotReady("the call was cancelled: send again")] * len(
            fresh
        )
        try:
            if self._spans is None:
                results = await self._call(fresh, items, bulk=bulk)
            else:
                with self._spans.batch(
                    "infer", (item.request_id for item in items), **{"valence.texts": len(fresh)}
                ) as traceparent:
                    results = await self._call(fresh, items, bulk=bulk, traceparent=traceparent)
        except Exception as error:
            results = [error] * len(fresh)
        finally:
            for key, result in zip(fresh, results, strict=True):
                self._in_flight.pop(key).set_result(result)

    async def _call(
        self,
        fresh: Mapping[Key, VersionRecord | None],
        items: Sequence[InferenceItem],
        *,
        bulk: bool,
        traceparent: str | None = None,
    ) -> Sequence[Inference | Exception]:
        rows: dict[tuple[str, bool], int] = {}
        versions: dict[str, int] = {}
        records: list[VersionRecord] = []
        pairs: list[tuple[int, int]] = []
        positions: list[tuple[int, int | None]] = []
        for (text, digest, query), record in fresh.items():
            row = rows.setdefault((text, query), len(rows))
            if record is None or digest is None:
                positions.append((row, None))
                continue
            if digest not in versions:
                versions[digest] = len(records)
                records.append(record)
            positions.append((row, len(pairs)))
            pairs.append((row, versions[digest]))
        request = InferenceRequest(
            texts=[text for text, _ in rows],
            queries=tuple(row for (_, query), row in rows.items() if query),
            versions=records,
            pairs=np.array(pairs, np.uint16).tobytes(),
            bulk=bulk,
            batch=os.urandom(8).hex(),
            traceparent=traceparent,
        )
        try:
            reply = await self._replica.infer(request)
        except Exception as error:
            log.warning("batch.failed", batch=request.batch, error=str(error), requests=_request_ids(items))
            raise
        if reply.text_faults or reply.score_faults:
            log.warning(
                "batch.faults", batch=request.batch, requests=_request_ids(items), **summarize_faults(reply)
            )
        return _unpack(reply, len(rows), positions)


def _request_ids(items: Sequence[InferenceItem]) -> list[str]:
    """Return the ids of a batch's requests for the log; the replica knows only the batch."""
    return list(dict.fromkeys(item.request_id for item in items if item.request_id is not None))


def _unpack(
    reply: InferenceReply, size: int, positions: Sequence[tuple[int, int | None]]
) -> list[Inference | Exception]:
    """Return the result at each position: a row of `size` rows, and a pair or None for the vector alone."""
    width = len(reply.embeddings) // size
    embeddings = memoryview(reply.embeddings)
    scores = np.frombuffer(reply.scores, np.float32).reshape(-1, len(LABELS)).tolist()
    tokens = np.frombuffer(reply.tokens, np.uint16).tolist()
    truncated = np.frombuffer(reply.truncated, np.bool_).tolist()
    unknown = np.frombuffer(reply.unknown, np.bool_).tolist()
    foreign = np.frombuffer(reply.foreign, np.bool_).tolist()
    results: list[Inference | Exception] = []
    for row, pair in positions:
        if (fault := reply.text_faults.get(row)) is not None:
            results.append(ModelNotReady(fault))
            continue
        if pair is not None and (fault := reply.score_faults.get(pair)) is not None:
            results.append(ModelNotReady("the version can't score this text", reason=fault))
            continue
        results.append(
            Inference(
                scores=_UNSCORED if pair is None else (scores[pair][0], scores[pair][1], scores[pair][2]),
                embedding=bytes(embeddings[row * width : (row + 1) * width]),
                tokens=tokens[row],
                truncated=truncated[row],
                unknown=unknown[row],
                language=UNDETERMINED if pair is None else reply.languages[pair],
                foreign=pair is not None and foreign[pair],
            )
        )
    return results
