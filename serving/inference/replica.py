"""The replica that encodes and scores.

A fault of one text, or of one head, is kept to the rows it concerns. Knows nothing of HTTP, the database or traffic.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from registry.bundles.bundle import LABELS, Bundle
from registry.errors import BundleInvalid, RegistryError
from registry.store.records import VersionRecord
from serving.core.tracing import Spans
from serving.inference.encoder import Encoder
from serving.inference.heads import Head, has_answer, load_head
from serving.inference.messages import InferenceReply, InferenceRequest, summarize_faults
from serving.inference.microbatches import MicroBatch

_IDLE_SECONDS = 2.0

log = structlog.get_logger(__name__)


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

    async def infer(self, question: InferenceRequest) -> InferenceReply:
        """Encode every text once, and score it by the versions that were asked for."""
        span: AbstractContextManager[object] = nullcontext()
        if self._spans is not None:
            span = self._spans.within(
                "encode", question.traceparent, **{"valence.texts": len(question.texts)}
            )
        with span:
            try:
                reply: InferenceReply = await self._in_worker(self._infer, question)
            except Exception:
                log.exception("batch.failed", batch=question.batch, texts=len(question.texts))
                raise
        if reply.text_faults or reply.score_faults:
            log.warning("batch.faults", batch=question.batch, **summarize_faults(reply))
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
            if scores.shape != (1, len(LABELS)) or not has_answer(scores).all():
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

    def _infer(self, question: InferenceRequest) -> InferenceReply:
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
                pairs[~has_answer(scores)], f"version {version.version} gave no finite score for this text"
            )


class _Growing:
    """The answer to one question while its micro-batches arrive."""

    def __init__(self, question: InferenceRequest, dimensions: int) -> None:
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

    def reply(self) -> InferenceReply:
        return InferenceReply(
            embeddings=self.embeddings.tobytes(),
            tokens=self.tokens.tobytes(),
            truncated=self.truncated.tobytes(),
            scores=self.scores.tobytes(),
            text_faults=self.text_faults,
            score_faults=self.score_faults,
        )
