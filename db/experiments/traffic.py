"""The running experiments, now and after each change.

Owns the channel that wakes its followers. It also polls, since no notice passes a transaction pooler.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import psycopg

from db.connection.engine import Database
from db.errors import DatabaseError
from db.experiments.experiments import Experiment, ExperimentRepository

CHANNEL: Final = "valence_traffic"
_RECONNECT_SECONDS: Final = 0.5


class TrafficFeed:
    """The running experiments, at most `poll` seconds old."""

    def __init__(self, database: Database, *, poll: float = 0.5) -> None:
        self._database = database
        self._experiments = ExperimentRepository(database)
        self._poll = poll

    async def current(self) -> tuple[Experiment, ...]:
        """Return the running experiments."""
        return await self._experiments.list(running=True, limit=1000)

    async def changes(self) -> AsyncIterator[tuple[Experiment, ...]]:
        """Yield the running experiments, and again after each change; an unreachable database changes nothing."""
        last: tuple[Experiment, ...] | None = None
        while True:
            try:
                async with self._database.listen(CHANNEL) as notice:
                    while True:
                        running = await self.current()
                        if running != last:
                            last = running
                            yield running
                        await notice(self._poll)
            except (DatabaseError, psycopg.Error):
                await asyncio.sleep(_RECONNECT_SECONDS)
            # Perhaps only the notices are down.
            with suppress(DatabaseError):
                running = await self.current()
                if running != last:
                    last = running
                    yield running
