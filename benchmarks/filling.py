"""A store to measure, and its content: vectors made around real ones, written by the platform's own writer."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from db.connection.engine import Database
from db.core.ids import Uuid7Clock
from db.embedded.server import EmbeddedPostgres
from db.predictions.submissions import NewPrediction, NewText, Submission
from db.predictions.writer import PredictionWriter
from db.schema import revisions
from registry.bundles.bundle import LABELS

CHUNK = 1_000
JITTER = 0.6

Vectors = NDArray[np.float32]


@contextmanager
def empty_store() -> Iterator[str]:
    """Start a server in a temporary folder; yield the URL of an empty database on it."""
    with tempfile.TemporaryDirectory(prefix="valence-bench-") as folder:
        Path(folder).chmod(0o755)
        server = EmbeddedPostgres(Path(folder))
        server.start()
        try:
            url = server.create_database("bench")
            revisions.upgrade(url)
            yield url
        finally:
            server.stop()


def around(known: Vectors, count: int, *, seed: int) -> Vectors:
    """Return unit vectors [count, d], each near one of `known` [n, d]."""
    random = np.random.default_rng(seed)
    return jittered(known[random.integers(0, len(known), count)], JITTER, random)


def between(known: Vectors, count: int, *, seed: int, jitter: float) -> Vectors:
    """Return unit vectors [count, d], each between two of `known` [n, d], at a distance of `jitter` from the line."""
    random = np.random.default_rng(seed)
    share = random.random((count, 1), dtype=np.float32)
    one, other = (known[random.integers(0, len(known), count)] for _ in range(2))
    return jittered(share * one + (1 - share) * other, jitter, random)


def jittered(vectors: Vectors, length: float, random: np.random.Generator) -> Vectors:
    """Vectors [n, d] moved by noise of about that length, of unit length again."""
    noise = random.standard_normal(vectors.shape, dtype=np.float32) * (length / vectors.shape[1] ** 0.5)
    moved: Vectors = vectors + noise
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return moved


class Store:
    """Writes vectors as texts that nobody stored before, each predicted once for one holder."""

    def __init__(self, database: Database, space: str, holder: UUID) -> None:
        self._writer = PredictionWriter(database, space=space)
        self._holder = holder
        self._clock = Uuid7Clock()

    async def put(
        self,
        vectors: Vectors,
        *,
        versions: Sequence[str] | None = None,
        contents: Sequence[str] | None = None,
    ) -> list[UUID]:
        """One transaction; the ids of the texts. `versions`: whose predictions they are, else all version 1's."""
        said = versions or ["1"] * len(vectors)
        written = contents or [f"stored text {uuid4()}" for _ in vectors]
        texts = [
            NewText(id=uuid4(), content=content, embedding=row.tobytes())
            for content, row in zip(written, vectors.astype("<f2"), strict=True)
        ]
        predictions = [
            NewPrediction(
                id=self._clock.next(),
                text_id=text.id,
                user_id=None,
                key_id=self._holder,
                holder_id=self._holder,
                model="sentiment",
                version=version,
                arm="named",
                experiment_id=None,
                unit=None,
                label=LABELS[number % len(LABELS)],
                confidence=0.5,
                scores=(0.25, 0.25, 0.5),
                request_id="fill",
                truncated=False,
                language="en",
                supported=True,
                mostly_unknown=False,
                queue_ms=0,
                infer_ms=0,
            )
            for number, (text, version) in enumerate(zip(texts, said, strict=True))
        ]
        await self._writer.commit([Submission(texts=texts, predictions=predictions)])
        return [text.id for text in texts]
