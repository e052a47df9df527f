"""Removal of unused texts and vectors, and of old finished jobs.

It goes in bounded steps. Owns the sweep's position. `db.predictions.partitions` drops whole months of predictions.
"""

from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from db.connection.engine import Database
from db.connection.repository import Repository, run_sql
from db.embeddings import segments
from db.schema.tables import NIL_ID

_STEP_TEXTS: Final = 2_000

_CLOCK: Final[LiteralString] = "SELECT clock_timestamp()"

_CANDIDATES: Final[LiteralString] = (
    "SELECT id, created_at < :before AND NOT EXISTS (SELECT FROM predictions p WHERE p.text_id = t.id) AS is_expired "
    "FROM text_inputs t WHERE id > :after ORDER BY id LIMIT :limit"
)
_LOCKED: Final[LiteralString] = (
    "SELECT id FROM text_inputs WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE SKIP LOCKED"
)
# Checked again under the lock: a writer that sent the text meanwhile has committed.
_UNNAMED: Final[LiteralString] = (
    "SELECT id FROM unnest(CAST(:ids AS uuid[])) AS t (id) "
    "WHERE NOT EXISTS (SELECT FROM predictions p WHERE p.text_id = t.id)"
)
_VECTORS: Final[LiteralString] = "DELETE FROM embeddings WHERE text_id = ANY(CAST(:ids AS uuid[]))"
_TEXTS: Final[LiteralString] = "DELETE FROM text_inputs WHERE id = ANY(CAST(:ids AS uuid[]))"
_JOBS: Final[LiteralString] = (
    "DELETE FROM jobs WHERE id IN (SELECT id FROM jobs WHERE state IN ('done', 'failed', 'cancelled') "
    "AND finished_at < :before LIMIT :limit)"
)


class Retention(Repository):
    """Each call checks the next few thousand texts by id, then starts over; a text that a prediction names stays."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._after: UUID = NIL_ID

    async def read_clock(self) -> datetime:
        """Return the database's time."""
        async with self._database.begin() as connection:
            now: datetime = (await run_sql(connection, _CLOCK)).scalar_one()
            return now

    async def sweep_texts(self, before: datetime, limit: int = _STEP_TEXTS) -> int:
        """Remove those of the next `limit` texts that are older than `before` and unnamed; return their number."""
        async with self._database.begin() as connection:
            candidates = await run_sql(connection, _CANDIDATES, before=before, after=self._after, limit=limit)
            rows = candidates.all()
            ids = [row.id for row in rows if row.is_expired]
            if ids:
                ids = list((await run_sql(connection, _LOCKED, ids=ids)).scalars())
                ids = list((await run_sql(connection, _UNNAMED, ids=ids)).scalars())
                await segments.prevent_moves(connection)
                await run_sql(connection, _VECTORS, ids=ids)
                await run_sql(connection, _TEXTS, ids=ids)
        self._after = rows[-1].id if len(rows) == limit else NIL_ID
        return len(ids)

    async def sweep_jobs(self, before: datetime, limit: int = _STEP_TEXTS) -> int:
        """Remove up to `limit` jobs that ended before that time; return their number."""
        async with self._database.begin() as connection:
            return (await run_sql(connection, _JOBS, before=before, limit=limit)).rowcount
