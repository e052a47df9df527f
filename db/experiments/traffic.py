"""The traffic: which experiments run, now and whenever that changes.

Owns the channel that wakes its followers. Where no notice comes through, as behind a transaction pooler, it asks again.
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
_MEND_SECONDS: Final = 0.5


class TrafficFeed:
    """The running experiments, at most `poll` seconds old."""

    def __init__(self, database: Database, *, poll: float = 0.5) -> None:
        self._database = database
        self._experiments = ExperimentRepository(database)
        self._poll = poll

    async def current(self) -> tuple[Experiment, ...]:
        """The running experiments."""
        return await self._experiments.list(running=True, limit=1000)

    async def changes(self) -> AsyncIterator[tuple[Experiment, ...]]:
        """The running experiments, and again after each change; a database that is away changes nothing."""
        last: tuple[Experiment, ...] | None = None
        while True:
            try:
                async with self._database.listen(CHANNEL) as notice:
                    while True:
                        found = await self.current()
                        if found != last:
                            last = found
                            yield found
                        await notice(self._poll)
            except (DatabaseError, psycopg.Error):
                await asyncio.sleep(_MEND_SECONDS)
            # The way of the notices may be down alone.
            with suppress(DatabaseError):
                found = await self.current()
                if found != last:
                    last = found
                    yield found
