"""Helpers for changes of the embedding space: vectors by text and space, and a worker without a model."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import numpy as np

from db.connection.engine import Database
from db.embeddings.spaces import SpaceRepository
from db.predictions.submissions import NewText
from db.schema.tables import NIL_ID
from db.search.similarity import SimilarityRepository
from serving.spaces.reembedding_worker import ReembeddingWorker
from serving.spaces.space_filler import SpaceFiller
from tests.support.postgres import SPACE
from tests.support.row_factories import new_text, run_sql

NEXT = "next-space"


def vector_in(space: str, content: str) -> Any:
    """Return float32 [384] of unit length, always the same for a text in a space."""
    seed = int.from_bytes(hashlib.sha256(f"{space}/{content}".encode()).digest()[:8])
    vector = np.random.default_rng(seed).standard_normal(384)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def text_in(space: str, content: str) -> NewText:
    """Return a text with its vector in a space."""
    return new_text(content, vector_in(space, content))


class DeterministicEncoders:
    """Encoders that give `vector_in`; they call `before` ahead of each batch, to disturb it."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[str]]] = []
        self.before: Callable[[Sequence[str]], Awaitable[None]] | None = None

    async def embed(self, space: str, texts: Sequence[str]) -> Any:
        """Return float32 [n, 384]."""
        self.batches.append((space, list(texts)))
        if self.before is not None:
            await self.before(texts)
        return np.stack([vector_in(space, text) for text in texts])


def new_worker(database: Database, encoders: DeterministicEncoders | None = None) -> ReembeddingWorker:
    """Return a worker as its process has it, over fake encoders."""
    return ReembeddingWorker(database, encoders or DeterministicEncoders(), retry_seconds=0.0)


async def run_until_idle(work: ReembeddingWorker | SpaceFiller) -> None:
    """Step until nothing is left to do now."""
    while await work.step():
        pass


async def build_space(database: Database, name: str = NEXT) -> SpaceRepository:
    """Build another space completely."""
    spaces = SpaceRepository(database)
    await spaces.ensure_live(SPACE)
    await spaces.begin(name, actor=None)
    await run_until_idle(new_worker(database))
    return spaces


async def count_vectors_by_text(database: Database, space: str) -> dict[UUID, int]:
    """Return each text's number of vectors in the segments of a space that are searched.

    Every stored text is in the result.
    """
    rows = await run_sql(
        database,
        "SELECT t.id, (SELECT count(*) FROM embeddings e JOIN segments s ON s.id = e.segment "
        "WHERE e.text_id = t.id AND s.space = %s AND s.state <> 'retired') "
        "FROM text_inputs t WHERE id <> %s",
        space,
        NIL_ID,
    )
    return {row[0]: row[1] for row in rows}


async def search_space(
    database: Database, space: str, content: str, *, k: int = 100
) -> list[tuple[UUID, float]]:
    """Search a space by a text's vector; return text ids and similarities, nearest first."""
    neighbours = await SimilarityRepository(database, space=space).search(vector_in(space, content), k=k)
    return [(each.text_id, each.similarity) for each in neighbours.results]
