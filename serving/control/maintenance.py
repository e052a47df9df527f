"""Maintenance of the database: create partitions in time, index vectors and keywords, remove what has expired.

One per cluster. Each task is safe to kill and to run twice; none is on the request path.
"""

import asyncio
from datetime import UTC, datetime, timedelta

import structlog

from db.connection.engine import Database
from db.embeddings.segments import Segments
from db.embeddings.spaces import SpaceRepository, SpaceState
from db.errors import DatabaseError
from db.predictions.idempotency import IdempotencyRepository
from db.predictions.partitions import Partitions
from db.privacy.retention import Retention
from db.search.keywords import KeywordRepository
from serving.core.periodic import run_periodically

log = structlog.get_logger(__name__)


class Maintenance:
    """Keeps the database fit for writing, as long as `run` runs.

    Args:
        space: the live embedding space of a database that has none yet.
        index_memory: bytes that the build of an index may use.
        retention_days: the age at which texts are removed; None: they are kept.
    """

    def __init__(
        self,
        database: Database,
        *,
        space: str,
        index_memory: int = 1 << 30,
        retention_days: int | None = None,
    ) -> None:
        self._partitions = Partitions(database)
        self._database = database
        self._space = space
        self._spaces = SpaceRepository(database)
        self._idempotency = IdempotencyRepository(database)
        self._keywords = KeywordRepository(database, space=space)
        self._retention = Retention(database)
        self._index_memory = index_memory
        self._retention_period = None if retention_days is None else timedelta(days=retention_days)

    async def run(self, every: float = 15.0) -> None:
        """Run the tasks every `every` seconds, without end; index builds take minutes and delay no other task."""
        async with asyncio.TaskGroup() as tasks:
            for task in (self.tidy, self.index, self.merge):
                tasks.create_task(
                    run_periodically(
                        task,
                        every=every,
                        errors=DatabaseError,
                        event="housekeeping.postponed",
                        chore=task.__name__,
                    )
                )

    async def tidy(self) -> None:
        """Run the short tasks."""
        now = datetime.now(UTC)
        await self._partitions.ensure(now)
        await self._spaces.ensure_live(self._space)
        for segments in await self._segments():
            await segments.ensure()
            if (closed := await segments.roll()) is not None:
                log.info("segment.closed", segment=closed)
        await self._idempotency.sweep()
        await self._keywords.merge()
        if self._retention_period is not None:
            await self._remove_expired(now - self._retention_period, now)

    async def index(self) -> None:
        """Index the closed segments."""
        for segments in await self._segments():
            while (indexed := await segments.index_next()) is not None:
                log.info("segment.indexed", segment=indexed)

    async def merge(self) -> None:
        """Merge the indexed segments; drop those that were merged or that belong to a space being removed."""
        for segments in await self._segments():
            while (merged := await segments.merge_next(memory=self._index_memory)) is not None:
                log.info("segment.merged", segment=merged)
        for space, state in (await self._spaces.states()).items():
            segments = Segments(self._database, space)
            if state is SpaceState.LEAVING:
                await segments.retire()
            while (dropped := await segments.drop_next()) is not None:
                log.info("segment.dropped", segment=dropped)

    async def _segments(self) -> list[Segments]:
        """Return the segments of every space that is kept."""
        return [
            Segments(self._database, space)
            for space, state in (await self._spaces.states()).items()
            if state is not SpaceState.LEAVING
        ]

    async def _remove_expired(self, before: datetime, now: datetime) -> None:
        """Remove what is older: one month, some texts and some jobs in each run."""
        if (month := await self._partitions.drop_oldest(before, now)) is not None:
            log.info("month.dropped", month=f"{month:%Y-%m}")
        if removed := await self._retention.sweep_texts(before):
            log.info("texts.removed", texts=removed)
        await self._retention.sweep_jobs(before)
