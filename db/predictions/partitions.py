"""The month partitions of predictions and feedback, made ahead of time and dropped when all in them is over.

Owns their names and bounds.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.engine import Database

_LOCK = 0x56414C_5041_5254
_TABLES = ("predictions", "feedback")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionRange:
    """The span of time without a gap, around now, for which partitions exist: [start, end)."""

    start: datetime
    end: datetime


class Partitions:
    """Partitions exist from the month before `now` to `months_ahead` after it once `ensure` has returned."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ensure(self, now: datetime, months_ahead: int = 3) -> PartitionRange:
        """Makes what is missing; safe at any time and by many at once. The answer bounds the clock of ids."""
        this = _month(now)
        starts = [_later(this, step) for step in range(-1, months_ahead + 1)]
        async with self._database.begin() as connection:
            if not await self._all_exist(connection, starts):
                await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                for start in starts:
                    # A function of the schema's owner: the application's role may make nothing else.
                    await connection.exec_driver_sql("SELECT make_month(%s)", (start.date(),))
        return PartitionRange(start=starts[0], end=_later(starts[-1], 1))

    async def drop(self, before: datetime, now: datetime) -> datetime | None:
        """Drops the oldest month, if it ended by `before`, with all predictions and feedback in it: its start, or None.

        The months that `ensure` makes stay, and so does one in which an experiment that still runs had begun.
        It waits half a second at most for others, and holds the tables for a few seconds at most: then it gives up.

        Raises:
            Unavailable: it couldn't have its locks, or not for long enough.
        """
        last = min(_later(_month(now), -1), _month(before))
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SET LOCAL lock_timeout = '500ms'")
            await connection.exec_driver_sql("SET LOCAL statement_timeout = '3s'")
            await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            found = await connection.exec_driver_sql(_OLDEST)
            name = found.scalar_one_or_none()
            if name is None:
                return None
            start = _start(name)
            running = await connection.exec_driver_sql(_RUNNING_SINCE)
            began = running.scalar_one_or_none()
            if start >= last or (began is not None and _later(start, 1) > began):
                return None
            await connection.exec_driver_sql("SELECT drop_month(%s)", (start.date(),))
        return start

    async def _all_exist(self, connection: AsyncConnection, starts: list[datetime]) -> bool:
        names = [_name(table, start) for start in starts for table in _TABLES]
        found = await connection.exec_driver_sql(
            "SELECT count(*) FROM unnest(%s::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name) "
            "WHERE c.relispartition",
            (names,),
        )
        return int(found.scalar_one()) == len(names)


_OLDEST = (
    "SELECT min(c.relname) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
    "WHERE i.inhparent = 'predictions'::regclass"
)
_RUNNING_SINCE = "SELECT min(created_at) FROM experiments WHERE state = 'running'"


def _name(table: str, start: datetime) -> str:
    return f"{table}_{start:%Y_%m}"


def _start(name: str) -> datetime:
    return datetime.strptime(name.removeprefix("predictions_"), "%Y_%m").replace(tzinfo=UTC)


def _month(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _later(month: datetime, months: int) -> datetime:
    years, index = divmod(month.month - 1 + months, 12)
    return month.replace(year=month.year + years, month=index + 1)
