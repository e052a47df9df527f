"""Housekeeping of the store: partitions ahead of time, full segments and new words indexed, what is over removed.

One per cluster, beside the fleet. Each chore is safe to kill and safe to run twice; none is on the request path.
"""

import asyncio
from datetime import UTC, datetime

import structlog

from db.engine import Database
from db.errors import DatabaseError
from db.idempotency import Idempotency
from db.keywords import Keywords
from db.partitions import Partitions
from db.segments import Segments

log = structlog.get_logger(__name__)


class Housekeeping:
    """Keeps the store fit for writing, for as long as `run` runs."""

    def __init__(self, database: Database, *, space: str) -> None:
        self._partitions = Partitions(database)
        self._segments = Segments(database, space)
        self._idempotency = Idempotency(database)
        self._keywords = Keywords(database, space=space)

    async def run(self, every: float = 15.0) -> None:
        """Do what is due every so many seconds, for ever."""
        while True:
            try:
                await self.tidy()
            except DatabaseError as error:
                log.warning("housekeeping.postponed", error=str(error))
            await asyncio.sleep(every)

    async def tidy(self) -> None:
        """Do once what is due now."""
        now = datetime.now(UTC)
        await self._partitions.ensure(now)
        await self._segments.ensure()
        if (closed := await self._segments.roll()) is not None:
            log.info("segment.closed", segment=closed)
        if (indexed := await self._segments.index_next()) is not None:
            log.info("segment.indexed", segment=indexed)
        await self._idempotency.sweep()
        await self._keywords.merge()
