"""Both ends of the remote call: the replica that encodes and scores, and the gateway's view of all replicas.

One call carries one batch by value, texts in and float bytes out. A fault of one text, or of one head, is kept to the
rows it concerns. Knows nothing of HTTP, the database or traffic.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from registry.bundle import Bundle
from registry.errors import RegistryError
from registry.records import VersionRecord
from serving.encoder import Encoder, MicroBatch
from serving.errors import ModelNotReady, NotReady
from serving.gateway import LABELS, Ask, Inference
from serving.heads import Head, answered, load_head

_IDLE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a replica says of a batch of n texts.

    `embeddings`: little-endian float16 [n, d]; `scores`: float32 [n, 3] of the version each text asked for;
    `truncated`: bool [n]; `faults`: row → why it has no answer. All as bytes, because they cross processes.
    """

    embeddings: bytes = field(repr=False)
    scores: bytes = field(repr=False)
    truncated: bytes = field(repr=False)
    tokens: int
    faults: dict[int, str] = field(default_factory=dict)


class Replica:
    """Encodes each batch once and scores every row by the head that it asked for; heads are loaded once and kept.

    Args:
        encoder: the encoder, warm.
        fetch: a verified local folder of a version's bundle.
        threads: batches that are worked on at once: while one computes, the next is tokenised.
    """

    def __init__(self, encoder: Encoder, fetch: Callable[[VersionRecord], Path], *, threads: int = 2) -> None:
        self._encoder = encoder
        self._fetch = fetch
        self._heads: dict[str, Head] = {}
        self._loading = Lock()
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="infer")
        self._asked = time.monotonic()

    def warm_up_when_idle(self) -> None:
        """Compile the shapes that are still cold, one at a time, whenever nobody has asked for a while."""
        Thread(target=self._warm_rest, name="warm-up", daemon=True).start()

    async def infer(self, texts: list[str], versions: list[VersionRecord], asked: bytes) -> Reply:
        """Encode and score; `asked` is uint16 [n], the index into `versions` of each text."""
        reply: Reply = await self._in_worker(self._infer, texts, versions, asked)
        return reply

    async def embed(self, texts: list[str]) -> Reply:
        """Encode only."""
        reply: Reply = await self._in_worker(self._infer, texts, [], b"")
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
                raise ModelNotReady(f"version {version.version} gives no usable answer for a plain text")

    def _head(self, version: VersionRecord) -> Head:
        head = self._heads.get(version.digest)
        if head is None:
            with self._loading:
                head = self._heads.get(version.digest)
                if head is None:
                    head = load_head(Bundle.open(self._fetch(version)))
                    self._heads[version.digest] = head
        return head

    def _infer(self, texts: list[str], versions: list[VersionRecord], asked: bytes) -> Reply:
        batch = _Batch(len(texts), self._encoder.settings.dimensions)
        which = np.frombuffer(asked, np.uint16)
        try:
            for micro in self._encoder.run(texts):
                self._score(micro, versions, which, batch)
        except (RuntimeError, ValueError):
            # Something in the batch upsets the encoder: find out what by running each text alone.
            batch = _Batch(len(texts), self._encoder.settings.dimensions)
            for row, text in enumerate(texts):
                try:
                    for micro in self._encoder.run([text]):
                        self._score(micro, versions, which, batch, first_row=row)
                except (RuntimeError, ValueError) as error:
                    batch.faults[row] = f"the encoder can't read this text ({type(error).__name__})"
        return batch.reply()

    def _score(
        self,
        micro: MicroBatch,
        versions: Sequence[VersionRecord],
        which: NDArray[np.uint16],
        batch: "_Batch",
        first_row: int = 0,
    ) -> None:
        rows = micro.rows + first_row
        batch.embeddings[rows] = micro.embedding
        batch.truncated[rows] = micro.truncated
        batch.tokens += int(micro.mask.sum())
        for index in np.unique(which[rows]) if versions else ():
            version = versions[index]
            members = which[rows] == index
            try:
                scores = self._head(version).scores(micro)
            except (RegistryError, RuntimeError, ValueError, ArithmeticError) as error:
                reason = f"version {version.version} of {version.model!r} failed: {error}"
                batch.faults.update((int(row), reason) for row in rows[members])
                continue
            batch.scores[rows[members]] = scores[members]
            for row in rows[members & ~answered(scores)]:
                batch.faults[int(row)] = f"version {version.version} gave no finite score for this text"


class _Batch:
    """The answer to one batch while it grows."""

    def __init__(self, size: int, dimensions: int) -> None:
        self.embeddings = np.zeros((size, dimensions), np.float16)
        self.scores = np.zeros((size, len(LABELS)), np.float32)
        self.truncated = np.zeros(size, np.bool_)
        self.faults: dict[int, str] = {}
        self.tokens = 0

    def reply(self) -> Reply:
        return Reply(
            embeddings=self.embeddings.tobytes(),
            scores=self.scores.tobytes(),
            truncated=self.truncated.tobytes(),
            tokens=self.tokens,
            faults=self.faults,
        )


class Calls(Protocol):
    """How a replica is called: in this process, or through a Ray Serve handle."""

    async def infer(self, texts: list[str], versions: list[VersionRecord], asked: bytes) -> Reply:
        """`Replica.infer`."""
        ...

    async def embed(self, texts: list[str]) -> Reply:
        """`Replica.embed`."""
        ...


class HandleCalls:
    """Calls whichever replica Ray Serve chooses, by value over gRPC.

    A replica that dies takes its batch along: those rows get `NotReady`, never another's answer.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(_by_reference=False)

    async def infer(self, texts: list[str], versions: list[VersionRecord], asked: bytes) -> Reply:
        """`Replica.infer` on one of the replicas."""
        return await self._call(self._handle.infer.remote(texts, versions, asked))

    async def embed(self, texts: list[str]) -> Reply:
        """`Replica.embed` on one of the replicas."""
        return await self._call(self._handle.embed.remote(texts))

    async def _call(self, response: Any) -> Reply:
        try:
            reply: Reply = await response
        except (RayError, RayServeException, ConnectionError) as error:
            raise NotReady(f"the encoder replica is gone ({type(error).__name__}): send again") from error
        return reply


class RemoteEncoders:
    """The gateway's `Encoders` over one kind of replica."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def infer(self, asks: Sequence[Ask]) -> Sequence[Inference | Exception]:
        """One remote call for a batch; equal texts for the same version are computed once."""
        places: dict[tuple[str, str], int] = {}
        versions: dict[str, int] = {}
        records: list[VersionRecord] = []
        asked: list[int] = []
        where: list[int] = []
        for ask in asks:
            digest = ask.record.digest
            if digest not in versions:
                versions[digest] = len(records)
                records.append(ask.record)
            slot = (ask.text, digest)
            if slot not in places:
                places[slot] = len(asked)
                asked.append(versions[digest])
            where.append(places[slot])
        reply = await self._calls.infer(
            [text for text, _ in places], records, np.array(asked, np.uint16).tobytes()
        )
        distinct = _unpacked(reply, len(asked))
        return [distinct[place] for place in where]

    async def embed(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Vectors float32 [n, d] of unit length, and the tokens read."""
        reply = await self._calls.embed(list(texts))
        if reply.faults:
            raise NotReady(f"a text can't be embedded: {next(iter(reply.faults.values()))}")
        vectors = np.frombuffer(reply.embeddings, np.float16).reshape(len(texts), -1)
        return vectors.astype(np.float32), reply.tokens


def _unpacked(reply: Reply, size: int) -> list[Inference | Exception]:
    width = len(reply.embeddings) // size
    embeddings = memoryview(reply.embeddings)
    scores = np.frombuffer(reply.scores, np.float32).reshape(size, len(LABELS)).tolist()
    truncated = np.frombuffer(reply.truncated, np.bool_).tolist()
    return [
        ModelNotReady(reply.faults[row])
        if row in reply.faults
        else Inference(
            scores=(scores[row][0], scores[row][1], scores[row][2]),
            embedding=bytes(embeddings[row * width : (row + 1) * width]),
            truncated=truncated[row],
        )
        for row in range(size)
    ]
