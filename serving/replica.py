"""Both ends of the remote call: the replica that encodes and scores, and the gateway's view of all replicas.

One call carries one batch by value, texts in and float bytes out. A fault of one text, or of one head, is kept to the
rows it concerns. Knows nothing of HTTP, the database or traffic.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Protocol, TypeAlias

import numpy as np
import structlog
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from registry.bundle import LABELS, Bundle
from registry.errors import BundleInvalid, RegistryError
from registry.records import VersionRecord
from serving.compute import Ask, Inference
from serving.encoder import Encoder, MicroBatch
from serving.errors import ModelNotReady, NotReady
from serving.heads import Head, answered, load_head
from serving.tracing import Spans

_IDLE_SECONDS = 2.0
_UNSCORED = (0.0, 0.0, 0.0)
_REASONS = 5

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A batch of n different texts, and which of the versions scores which of them.

    `pairs`: uint16 [m, 2], each a row of `texts` and an index into `versions`; a text may be scored by several
    versions, after one pass, or by none, which asks for its vector alone. `bulk` lets other batches go first.
    `batch` names the batch in the logs of both ends, `traceparent` its span.
    """

    texts: list[str]
    versions: list[VersionRecord]
    pairs: bytes = field(repr=False)
    bulk: bool
    batch: str = ""
    traceparent: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a replica says of a question's n texts and m pairs.

    `embeddings`: little-endian float16 [n, d]; `tokens`: uint16 [n], how many were read; `truncated`: bool [n];
    `scores`: float32 [m, 3]. All as bytes, because they cross processes. Why there is no answer: `text_faults` by
    row, `score_faults` by pair.
    """

    embeddings: bytes = field(repr=False)
    tokens: bytes = field(repr=False)
    truncated: bytes = field(repr=False)
    scores: bytes = field(repr=False)
    text_faults: dict[int, str] = field(default_factory=dict)
    score_faults: dict[int, str] = field(default_factory=dict)


class Replica:
    """Encodes each batch once and scores every row by the head that it asked for; heads are loaded once and kept.

    Args:
        encoder: the encoder, warm.
        fetch: a verified local folder of a version's bundle.
        threads: batches that are worked on at once: while one computes, the next is tokenised.
        spans: whoever traces, if anybody does.
    """

    def __init__(
        self,
        encoder: Encoder,
        fetch: Callable[[VersionRecord], Path],
        *,
        threads: int = 2,
        spans: Spans | None = None,
    ) -> None:
        self._spans = spans
        self._encoder = encoder
        self._fetch = fetch
        self._heads: dict[str, Head] = {}
        self._loading = Lock()
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="infer")
        self._asked = time.monotonic()

    def warm_up_when_idle(self) -> None:
        """Compile the shapes that are still cold, one at a time, whenever nobody has asked for a while."""
        Thread(target=self._warm_rest, name="warm-up", daemon=True).start()

    async def infer(self, question: Question) -> Reply:
        """Encode every text once, and score it by the versions that were asked for."""
        span: AbstractContextManager[object] = nullcontext()
        if self._spans is not None:
            span = self._spans.within(
                "encode", question.traceparent, **{"valence.texts": len(question.texts)}
            )
        with span:
            try:
                reply: Reply = await self._in_worker(self._infer, question)
            except Exception:
                log.exception("batch.failed", batch=question.batch, texts=len(question.texts))
                raise
        if reply.text_faults or reply.score_faults:
            log.warning("batch.faults", batch=question.batch, **_said(reply))
        return reply

    async def load(self, version: VersionRecord) -> None:
        """Load a version's head and run it once, so that its first answer is quick.

        Raises:
            RegistryError: the bundle can't be fetched, verified or loaded.
        """
        await self._in_worker(self._prove, version)

    def _warm_rest(self) -> None:
        complete = False
        while not complete:
            while time.monotonic() - self._asked < _IDLE_SECONDS:
                time.sleep(_IDLE_SECONDS / 4)
            complete = self._encoder.warm_up(0).complete

    async def _in_worker(self, work: Callable[..., Any], *arguments: object) -> Any:
        self._asked = time.monotonic()
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *arguments)

    def _prove(self, version: VersionRecord) -> None:
        head = self._head(version)
        for micro in self._encoder.run(["A short text to try the head on."]):
            scores = head.scores(micro)
            if scores.shape != (1, len(LABELS)) or not answered(scores).all():
                raise BundleInvalid(f"version {version.version} gives no usable answer for a plain text")

    def _head(self, version: VersionRecord) -> Head:
        head = self._heads.get(version.digest)
        if head is None:
            with self._loading:
                head = self._heads.get(version.digest)
                if head is None:
                    head = load_head(Bundle.open(self._fetch(version)))
                    self._heads[version.digest] = head
        return head

    def _infer(self, question: Question) -> Reply:
        answer = _Growing(question, self._encoder.settings.dimensions)
        try:
            for micro in self._encoder.run(question.texts, bulk=question.bulk):
                self._answer(micro, answer)
        except (RuntimeError, ValueError):
            # Something in the batch upsets the encoder: find out what by running each text alone.
            answer = _Growing(question, self._encoder.settings.dimensions)
            for row, text in enumerate(question.texts):
                try:
                    for micro in self._encoder.run([text], bulk=question.bulk):
                        self._answer(replace(micro, rows=micro.rows + row), answer)
                except (RuntimeError, ValueError) as error:
                    answer.text_faults[row] = f"the encoder can't read this text ({type(error).__name__})"
        return answer.reply()

    def _answer(self, micro: MicroBatch, answer: "_Growing") -> None:
        answer.encoded(micro)
        for version, pairs, places in answer.asked_of(micro):
            try:
                scores = self._head(version).scores(micro.only(places))
            except (RegistryError, RuntimeError, ValueError, ArithmeticError) as error:
                answer.failed(pairs, f"version {version.version} of {version.model!r} failed: {error}")
                continue
            answer.scores[pairs] = scores
            answer.failed(
                pairs[~answered(scores)], f"version {version.version} gave no finite score for this text"
            )


class _Growing:
    """The answer to one question while its micro-batches arrive."""

    def __init__(self, question: Question, dimensions: int) -> None:
        size = len(question.texts)
        pairs = np.frombuffer(question.pairs, np.uint16).reshape(-1, 2)
        self._versions = question.versions
        self._rows, self._asked = pairs[:, 0], pairs[:, 1]
        self._places = np.full(size, -1, np.int64)
        self.embeddings = np.zeros((size, dimensions), np.float16)
        self.tokens = np.zeros(size, np.uint16)
        self.truncated = np.zeros(size, np.bool_)
        self.scores = np.zeros((len(pairs), len(LABELS)), np.float32)
        self.text_faults: dict[int, str] = {}
        self.score_faults: dict[int, str] = {}

    def encoded(self, micro: MicroBatch) -> None:
        """The vectors of a micro-batch are there."""
        self.embeddings[micro.rows] = micro.embedding
        self.tokens[micro.rows] = micro.mask.sum(axis=1)
        self.truncated[micro.rows] = micro.truncated

    def asked_of(
        self, micro: MicroBatch
    ) -> Iterator[tuple[VersionRecord, NDArray[np.int64], NDArray[np.int64]]]:
        """Each version that a micro-batch is to be scored by, with its pairs and their places in there."""
        self._places[:] = -1
        self._places[micro.rows] = np.arange(len(micro.rows))
        places = self._places[self._rows]
        for index, version in enumerate(self._versions):
            (pairs,) = np.nonzero((places >= 0) & (self._asked == index))
            if len(pairs):
                # In the order of the micro-batch, which is that of its rows' lengths.
                pairs = pairs[np.argsort(places[pairs])]
                yield version, pairs, places[pairs]

    def failed(self, pairs: NDArray[np.int64], reason: str) -> None:
        """These pairs get no score."""
        self.score_faults.update((int(pair), reason) for pair in pairs)

    def reply(self) -> Reply:
        return Reply(
            embeddings=self.embeddings.tobytes(),
            tokens=self.tokens.tobytes(),
            truncated=self.truncated.tobytes(),
            scores=self.scores.tobytes(),
            text_faults=self.text_faults,
            score_faults=self.score_faults,
        )


def _said(reply: Reply) -> dict[str, object]:
    """What a log says of a reply's faults: how many, and a few of the reasons."""
    reasons = sorted({*reply.text_faults.values(), *reply.score_faults.values()})
    return {
        "text_faults": len(reply.text_faults),
        "score_faults": len(reply.score_faults),
        "reasons": reasons[:_REASONS],
    }


class Calls(Protocol):
    """How a replica is called: in this process, or through a Ray Serve handle."""

    async def infer(self, question: Question) -> Reply:
        """`Replica.infer`."""
        ...


class HandleCalls:
    """Calls whichever replica Ray Serve chooses, by value over gRPC.

    A replica that dies takes its batch along: those rows get `NotReady`, never another's answer.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(_by_reference=False)

    async def infer(self, question: Question) -> Reply:
        """`Replica.infer` on one of the replicas."""
        try:
            reply: Reply = await self._handle.infer.remote(question)
        except (RayError, RayServeException, ConnectionError) as error:
            raise NotReady(f"the encoder replica is gone ({type(error).__name__}): send again") from error
        return reply


Key: TypeAlias = tuple[str, str | None]


class RemoteEncoders:
    """The gateway's `Encoders` over one kind of replica. What is in flight already is waited for, not asked again."""

    def __init__(self, calls: Calls, *, spans: Spans | None = None) -> None:
        self._calls = calls
        self._spans = spans
        self._flying: dict[Key, asyncio.Future[Inference | Exception]] = {}

    async def infer(self, asks: Sequence[Ask], *, bulk: bool) -> Sequence[Inference | Exception]:
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
        self, fresh: Mapping[Key, VersionRecord | None], asks: Sequence[Ask], *, bulk: bool
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
        asks: Sequence[Ask],
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
        question = Question(
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
            log.warning("batch.faults", batch=question.batch, requests=_requests(asks), **_said(reply))
        return _unpacked(reply, len(rows), asked)


def _requests(asks: Sequence[Ask]) -> list[str]:
    """The ids of a batch's requests, for the log: the replica knows the batch alone."""
    return list(dict.fromkeys(ask.request_id for ask in asks if ask.request_id is not None))


def _unpacked(
    reply: Reply, size: int, asked: Sequence[tuple[int, int | None]]
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
