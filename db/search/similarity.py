"""Search by meaning: the stored texts nearest to a vector, among those with a fitting prediction.

Owns the plan (index or exact scan) and its guarantees. Never embeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg

from db.connection.engine import Database, PsycopgConnection
from db.core.binary import Vector
from db.errors import Rejected
from db.predictions.feedback import Judgement
from db.predictions.predictions import Prediction
from db.search.similarity_sql import Matches, SimilarityFilters, SimilarityQuery
from db.search.text_history import load_histories

__all__ = ["Neighbour", "Neighbours", "SimilarityFilters", "SimilarityRepository"]

# Microseconds per row of 384 dimensions in each plan; the cheaper plan is taken.
_SCAN_ROW: Final = 0.7
_LOOK_UP_ROW: Final = 10.0
_STEP: Final = 20.0
_MAX_SCAN_TUPLES: Final = 20_000
_ROW_BYTES: Final = 850
# The least breadth of a graph walk (ef_search). It must grow with the graph: a recall of 0.98 took 200 among 100,000
# texts and 550 among a million in one graph. Rows that don't fit the filter take part of it, so a filter broadens the
# walk by the square root of 1 / selectivity.
_BREADTH: Final = 200
_BREADTH_ROWS: Final = 100_000
_BREADTH_GROWTH: Final = 0.45
_BROADEST: Final = 1_000
# Fitting rows that a graph walk passes, as a multiple of its share of k, so that the nearest are among them.
_MARGIN: Final = 8
_REACH: Final = 4
_LEAST_REACH: Final = 100
_WALK: Final = (
    "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', %s, true), "
    "set_config('hnsw.max_scan_tuples', %s, true)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A text, its latest prediction per version, its feedback.

    `similarity`: its cosine to the query; None if it was found by words alone.
    """

    text_id: UUID
    text: str
    similarity: float | None
    predictions: tuple[Prediction, ...]
    feedback: tuple[Judgement, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The neighbours, nearest first. `exact`: no index was used. `complete`: every fitting text was compared."""

    results: tuple[Neighbour, ...]
    exact: bool
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Segment:
    id: int
    indexed: bool
    rows: float


class SimilarityRepository:
    """Finds k texts whenever k fit: if the index yields fewer, every fitting text is compared."""

    def __init__(
        self, database: Database, *, space: str, dimensions: int = 384, exact_seconds: float = 5.0
    ) -> None:
        self._database = database
        self._space = space
        self._dimensions = dimensions
        self._exact_seconds = exact_seconds

    async def search(
        self,
        vector: Vector,
        *,
        k: int = 10,
        filters: SimilarityFilters | None = None,
        holder: UUID | None = None,
        min_similarity: float | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """Return the `k` (at most 100) texts nearest to `vector` (float32, unit length, the space's dimensions).

        `holder`: only texts with a fitting prediction of this holder, with only those predictions and their feedback.
        """
        query = SimilarityQuery(
            vector, k=k, filters=filters or SimilarityFilters(), holder=holder, min_similarity=min_similarity
        )
        try:
            return await self._search(query, holder, exact=exact)
        except Rejected as error:
            # The search took so long that a segment which it had looked up was merged and dropped.
            if not isinstance(error.__cause__, psycopg.errors.UndefinedTable):
                raise
        return await self._search(query, holder, exact=exact)

    async def describe(
        self, matches: Sequence[tuple[UUID, float | None]], *, holder: UUID | None = None
    ) -> tuple[Neighbour, ...]:
        """Return the texts with their similarities and histories, without those that were erased meanwhile."""
        if not matches:
            return ()
        async with self._database.search() as connection:
            return await self._described(connection, matches, holder)

    async def _search(self, query: SimilarityQuery, holder: UUID | None, *, exact: bool) -> Neighbours:
        async with self._database.search() as connection:
            matches, exactly, complete = await self._run(connection, query, exact=exact)
            results = await self._described(connection, matches, holder)
        # A text that was erased in between may have taken the place of another.
        return Neighbours(results=results, exact=exactly, complete=complete and len(results) == len(matches))

    async def _run(
        self, connection: PsycopgConnection, query: SimilarityQuery, *, exact: bool
    ) -> tuple[Matches, bool, bool]:
        """Return the texts, whether they are exact, and whether they are complete."""
        segments = await self._segments(connection)
        everything = [segment.id for segment in segments]
        rows = sum(segment.rows for segment in segments)
        fitting = min(rows, await query.estimate(connection)) if query.narrowed else rows
        selective = _LOOK_UP_ROW * fitting < _SCAN_ROW * rows
        # Enough rows if fitting texts are on average as near as the others.
        reach = max(_LEAST_REACH, round(_REACH * query.k * rows / max(fitting, 1.0)))
        indexed = [segment.id for segment in segments if segment.indexed]
        by_scan = _LOOK_UP_ROW * fitting if selective else _SCAN_ROW * rows
        largest = max((segment.rows for segment in segments if segment.indexed), default=0.0) / max(rows, 1.0)
        walked = max(query.k, math.ceil(_MARGIN * query.k * largest))
        passed = walked * rows / max(fitting, 1.0)
        broad = _BREADTH * max(1.0, rows / _BREADTH_ROWS) ** _BREADTH_GROWTH
        broad *= math.sqrt(rows / max(fitting, 1.0))
        breadth = max(broad, 2 * query.k, passed)
        by_index = _STEP * min(breadth, _MAX_SCAN_TUPLES) * len(indexed)

        async def compare() -> Matches:
            return await query.by_scan(connection, everything, reach=None if selective else reach)

        if exact or not indexed or by_scan <= by_index:
            return await compare(), True, True
        scanned = [segment.id for segment in segments if not segment.indexed]
        # Its result isn't fetched, so that it is sent with the next statement.
        width = str(min(_BROADEST, round(breadth)))
        await connection.execute(_WALK, (width, "relaxed_order", str(_MAX_SCAN_TUPLES)))
        matches = await query.find_nearest(connection, indexed, scanned, reach=reach, walked=walked)
        if len(matches) >= query.k:
            return matches, False, False
        try:
            async with connection.transaction():
                limit = str(round(self._exact_seconds * 1000))
                await connection.execute("SELECT set_config('statement_timeout', %s, true)", (limit,))
                return await compare(), True, True
        except psycopg.errors.QueryCanceled:
            return matches, False, False

    async def _segments(self, connection: PsycopgConnection) -> list[_Segment]:
        cursor = await connection.execute(
            "SELECT id, state = 'indexed', pg_relation_size(format('embeddings_%%s', id)::regclass)::float8 "
            "FROM segments WHERE space = %s AND state IN ('open', 'closed', 'indexed') ORDER BY id",
            (self._space,),
        )
        rows = await cursor.fetchall()
        return [_Segment(id=row[0], indexed=row[1], rows=row[2] / _ROW_BYTES) for row in rows]

    async def _described(
        self,
        connection: PsycopgConnection,
        matches: Sequence[tuple[UUID, float | None]],
        holder: UUID | None,
    ) -> tuple[Neighbour, ...]:
        known = await load_histories(
            connection, self._database.cipher, [text_id for text_id, _ in matches], holder=holder
        )
        return tuple(
            Neighbour(
                text_id=text_id,
                text=known[text_id].predictions[0].text,
                similarity=similarity,
                predictions=known[text_id].predictions,
                feedback=known[text_id].feedback,
            )
            for text_id, similarity in matches
            if text_id in known
        )
