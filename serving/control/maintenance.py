"""Maintenance of the database: create partitions in time, index vectors and keywords, remove what has expired.

One per cluster. Each task is safe to kill and to run twice; none is on the request path.
"""

import asyncio
from collections.abc import Callable
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

_MOST_DIFFERENCE = timedelta(minutes=2)


class Maintenance:
    """Keeps the database fit for writing, as long as `run` runs.

    Args:
        space: the live embedding space of a database that has none yet.
        index_memory: bytes that the build of an index may use.
        retention_days: the age at which texts are removed; None: they are kept.
        read_clock: this machine's time.
    """

    def __init__(
        self,
        database: Database,
        *,
        space: str,
        index_memory: int = 1 << 30,
        retention_days: int | None = None,
        read_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._partitions = Partitions(database)
        self._database = database
        self._space = space
        self._spaces = SpaceRepository(database)
        self._idempotency = IdempotencyRepository(database)
        self._keywords = KeywordRepository(database, space=space)
        self._retention = Retention(database)
        self._index_memory = index_memory
        self._read_clock = read_clock
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
        await self._partitions.ensure(self._read_clock())
        await self._spaces.ensure_live(self._space)
        for segments in await self._segments():
            await segments.ensure()
            if (closed := await segments.roll()) is not None:
                log.info("segment.closed", segment=closed)
        await self._idempotency.sweep()
        await self._keywords.merge()
        if self._retention_period is not None:
            await self._remove_expired(self._retention_period)

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

    async def _remove_expired(self, age: timedelta) -> None:
        """Remove what is older: one month a day, then some texts and jobs of its time in each run.

        Nothing is removed while the clocks of the database and of this machine differ: one of them is wrong.
        """
        now, own = await self._retention.read_clock(), self._read_clock()
        if abs(now - own) > _MOST_DIFFERENCE:
            log.error("retention.refused", database_clock=now.isoformat(), own_clock=own.isoformat())
            return
        if (month := await self._partitions.drop_oldest(now, age)) is not None:
            name = f"{month.start:%Y-%m}"
            if month.is_dropped:
                log.info("month.dropped", month=name)
            else:
                log.warning("month.expired", month=name)
        # Not the clock, but the months that went say what else may go.
        if (start := await self._partitions.read_start()) is None:
            return
        before = min(start, now - age)
        if removed := await self._retention.sweep_texts(before):
            log.info("texts.removed", texts=removed)
        await self._retention.sweep_jobs(before)
