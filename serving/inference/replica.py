"""The replica, which encodes texts and scores them.

Keeps a fault of one text or one head to the rows concerned. Knows nothing of HTTP, the database or traffic.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
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
from serving.inference.languages import UNDETERMINED, TextLanguage, identify_language, load_classifier
from serving.inference.messages import InferenceReply, InferenceRequest, summarize_faults
from serving.inference.microbatches import MicroBatch

_IDLE_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Replica:
    """Encodes each batch once and scores every row by the heads requested for it; loads each head once.

    Args:
        encoder: the encoder, warm.
        fetch: returns a verified local folder with a version's bundle.
        threads: batches that are worked on at once: while one computes, the next is tokenized.
        spans: traces each batch; None without tracing.
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
        self._classifier = self._workers.submit(load_classifier)
        self._last_call = time.monotonic()

    def warm_up_when_idle(self) -> None:
        """Compile the shapes that are still cold, one at a time, whenever no call has come for a while."""
        Thread(target=self._warm_rest, name="warm-up", daemon=True).start()

    async def infer(self, request: InferenceRequest) -> InferenceReply:
        """Encode every text once, and score it by the versions requested."""
        span: AbstractContextManager[object] = nullcontext()
        if self._spans is not None:
            span = self._spans.within("encode", request.traceparent, **{"valence.texts": len(request.texts)})
        with span:
            try:
                reply: InferenceReply = await self._in_worker(self._infer, request)
            except Exception:
                log.exception("batch.failed", batch=request.batch, texts=len(request.texts))
                raise
        if reply.text_faults or reply.score_faults:
            log.warning("batch.faults", batch=request.batch, **summarize_faults(reply))
        return reply

    async def load(self, version: VersionRecord) -> None:
        """Load a version's head and run it once, so that its first answer is quick.

        Raises:
            RegistryError: the bundle can't be fetched, verified or loaded.
        """
        await self._in_worker(self._verify, version)

    def _warm_rest(self) -> None:
        complete = False
        while not complete:
            while time.monotonic() - self._last_call < _IDLE_SECONDS:
                time.sleep(_IDLE_SECONDS / 4)
            complete = self._encoder.warm_up(0).complete

    async def _in_worker(self, work: Callable[..., Any], *arguments: object) -> Any:
        self._last_call = time.monotonic()
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *arguments)

    def _verify(self, version: VersionRecord) -> None:
        self._classifier.result()
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

    def _infer(self, request: InferenceRequest) -> InferenceReply:
        reply = _ReplyBuilder(request, self._encoder.settings.dimensions)
        try:
            for micro in self._encoder.run(request.texts, bulk=request.bulk, queries=request.queries):
                self._score(micro, reply)
        except (RuntimeError, ValueError):
            # The encoder fails on something in the batch: run each text alone to find out which.
            reply = _ReplyBuilder(request, self._encoder.settings.dimensions)
            for row, text in enumerate(request.texts):
                try:
                    queries = (0,) if row in request.queries else ()
                    for micro in self._encoder.run([text], bulk=request.bulk, queries=queries):
                        self._score(replace(micro, rows=micro.rows + row), reply)
                except (RuntimeError, ValueError) as error:
                    reply.text_faults[row] = f"the encoder can't read this text ({type(error).__name__})"
        return reply.build()

    def _score(self, micro: MicroBatch, reply: "_ReplyBuilder") -> None:
        reply.add_vectors(micro)
        for version, pairs, positions in reply.pairs_of(micro):
            try:
                scores = self._head(version).scores(micro.select(positions))
            except (RegistryError, RuntimeError, ValueError, ArithmeticError) as error:
                reply.add_faults(pairs, f"version {version.version} of {version.model!r} failed: {error}")
                continue
            reply.scores[pairs] = scores
            reply.add_languages(
                pairs, [identify_language(micro.texts[position], version.languages) for position in positions]
            )
            reply.add_faults(
                pairs[~has_answer(scores)], f"version {version.version} gave no finite score for this text"
            )


class _ReplyBuilder:
    """Collects the reply to a request from its micro-batches."""

    def __init__(self, request: InferenceRequest, dimensions: int) -> None:
        size = len(request.texts)
        pairs = np.frombuffer(request.pairs, np.uint16).reshape(-1, 2)
        self._versions = request.versions
        self._pair_rows, self._pair_versions = pairs[:, 0], pairs[:, 1]
        self._positions = np.full(size, -1, np.int64)
        self.embeddings = np.zeros((size, dimensions), np.float16)
        self.tokens = np.zeros(size, np.uint16)
        self.truncated = np.zeros(size, np.bool_)
        self.unknown = np.zeros(size, np.bool_)
        self.foreign = np.zeros(len(pairs), np.bool_)
        self.languages = [UNDETERMINED] * len(pairs)
        self.scores = np.zeros((len(pairs), len(LABELS)), np.float32)
        self.text_faults: dict[int, str] = {}
        self.score_faults: dict[int, str] = {}

    def add_vectors(self, micro: MicroBatch) -> None:
        """Add the vectors of a micro-batch."""
        self.embeddings[micro.rows] = micro.embedding
        self.tokens[micro.rows] = micro.mask.sum(axis=1)
        self.truncated[micro.rows] = micro.truncated
        self.unknown[micro.rows] = micro.unknown

    def pairs_of(
        self, micro: MicroBatch
    ) -> Iterator[tuple[VersionRecord, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each version that scores texts of a micro-batch, with its pairs and their positions there."""
        self._positions[:] = -1
        self._positions[micro.rows] = np.arange(len(micro.rows))
        positions = self._positions[self._pair_rows]
        for index, version in enumerate(self._versions):
            (pairs,) = np.nonzero((positions >= 0) & (self._pair_versions == index))
            if len(pairs):
                # In the order of the micro-batch, which is that of its rows' lengths.
                pairs = pairs[np.argsort(positions[pairs])]
                yield version, pairs, positions[pairs]

    def add_languages(self, pairs: NDArray[np.int64], languages: Sequence[TextLanguage]) -> None:
        """Add the language of each pair's text, as its version knows it."""
        for pair, language in zip(pairs.tolist(), languages, strict=True):
            self.languages[pair], self.foreign[pair] = language.language, language.foreign

    def add_faults(self, pairs: NDArray[np.int64], reason: str) -> None:
        """Note why these pairs get no score."""
        self.score_faults.update((int(pair), reason) for pair in pairs)

    def build(self) -> InferenceReply:
        return InferenceReply(
            embeddings=self.embeddings.tobytes(),
            tokens=self.tokens.tobytes(),
            truncated=self.truncated.tobytes(),
            unknown=self.unknown.tobytes(),
            scores=self.scores.tobytes(),
            foreign=self.foreign.tobytes(),
            languages=self.languages,
            text_faults=self.text_faults,
            score_faults=self.score_faults,
        )
