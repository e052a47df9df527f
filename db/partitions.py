"""The month partitions of predictions and feedback, made ahead of time.

Owns their names and bounds. Never drops one.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import Database

_LOCK = 0x56414C_5041_5254
_TABLES = ("predictions", "feedback")


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The span of time without a gap, around now, for which partitions exist: [start, end)."""

    start: datetime
    end: datetime


class Partitions:
    """Partitions exist from the month before `now` to `months_ahead` after it once `ensure` has returned."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ensure(self, now: datetime, months_ahead: int = 3) -> Range:
        """Makes what is missing; safe at any time and by many at once. The answer bounds the clock of ids."""
        this = _month(now)
        starts = [_later(this, step) for step in range(-1, months_ahead + 1)]
        async with self._database.begin() as connection:
            if not await self._all_exist(connection, starts):
                await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                for start in starts:
                    # A function of the schema's owner: the application's role may make nothing else.
                    await connection.exec_driver_sql("SELECT make_month(%s)", (start.date(),))
        return Range(start=starts[0], end=_later(starts[-1], 1))

    async def _all_exist(self, connection: AsyncConnection, starts: list[datetime]) -> bool:
        names = [_name(table, start) for start in starts for table in _TABLES]
        found = await connection.exec_driver_sql(
            "SELECT count(*) FROM unnest(%s::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name) "
            "WHERE c.relispartition",
            (names,),
        )
        return int(found.scalar_one()) == len(names)


def _name(table: str, start: datetime) -> str:
    return f"{table}_{start:%Y_%m}"


def _month(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _later(month: datetime, months: int) -> datetime:
    years, index = divmod(month.month - 1 + months, 12)
    return month.replace(year=month.year + years, month=index + 1)
