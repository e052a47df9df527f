"""Housekeeping of the store: partitions ahead of time, vectors and words indexed, what is over removed.

One per cluster, beside the fleet. Each chore is safe to kill and safe to run twice; none is on the request path.
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
    """Keeps the store fit for writing, for as long as `run` runs; `retention_days` None: nothing is too old.

    `space`: the live embedding space of a database that has none yet.
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
        self._kept = None if retention_days is None else timedelta(days=retention_days)

    async def run(self, every: float = 15.0) -> None:
        """Do what is due every so many seconds, for ever; builds take minutes, and hold nothing else up."""
        async with asyncio.TaskGroup() as chores:
            for chore in (self.tidy, self.index, self.merge):
                chores.create_task(
                    run_periodically(
                        chore,
                        every=every,
                        errors=DatabaseError,
                        event="housekeeping.postponed",
                        chore=chore.__name__,
                    )
                )

    async def tidy(self) -> None:
        """Do what is due now and soon done."""
        now = datetime.now(UTC)
        await self._partitions.ensure(now)
        await self._spaces.ensure(self._space)
        for segments in await self._segments():
            await segments.ensure()
            if (closed := await segments.roll()) is not None:
                log.info("segment.closed", segment=closed)
        await self._idempotency.sweep()
        await self._keywords.merge()
        if self._kept is not None:
            await self._let_go(now - self._kept, now)

    async def index(self) -> None:
        """Index what is closed."""
        for segments in await self._segments():
            while (indexed := await segments.index_next()) is not None:
                log.info("segment.indexed", segment=indexed)

    async def merge(self) -> None:
        """Merge what is indexed, and drop what was merged or is of a space that leaves."""
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
        """The segments of the spaces that texts get vectors of."""
        return [
            Segments(self._database, space)
            for space, state in (await self._spaces.states()).items()
            if state is not SpaceState.LEAVING
        ]

    async def _let_go(self, before: datetime, now: datetime) -> None:
        """What is older goes: a month, some texts and some jobs at a time."""
        if (month := await self._partitions.drop(before, now)) is not None:
            log.info("month.dropped", month=f"{month:%Y-%m}")
        if removed := await self._retention.sweep_texts(before):
            log.info("texts.removed", texts=removed)
        await self._retention.sweep_jobs(before)
