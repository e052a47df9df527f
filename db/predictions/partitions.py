"""The month partitions of predictions and feedback, made ahead of time and dropped when they expire.

Owns their names and bounds.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.repository import Repository

_LOCK = 0x56414C_5041_5254
_TABLES = ("predictions", "feedback")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionRange:
    """The time [start, end) around now in which every month has a partition."""

    start: datetime
    end: datetime


class Partitions(Repository):
    """After `ensure`, partitions exist from the month before `now` to `months_ahead` months after it."""

    async def ensure(self, now: datetime, months_ahead: int = 3) -> PartitionRange:
        """Make missing partitions and return their range, which bounds the clock of ids; safe with several at once."""
        this = _month(now)
        starts = [_later(this, step) for step in range(-1, months_ahead + 1)]
        async with self._database.begin() as connection:
            if not await self._all_exist(connection, starts):
                await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                for start in starts:
                    # A function of the schema's owner: the application's role may make nothing else.
                    await connection.exec_driver_sql("SELECT make_month(%s)", (start.date(),))
        return PartitionRange(start=starts[0], end=_later(starts[-1], 1))

    async def drop_oldest(self, before: datetime, now: datetime) -> datetime | None:
        """Drop the oldest month, with its predictions and feedback, if it ended by `before`; return its start, or None.

        The months that `ensure` makes stay, and so does every month since a running experiment began. It waits at
        most 0.5 s for its locks and holds them for at most 3 s.
        Raises Unavailable if it didn't get its locks, or needed them for longer.
        """
        last = min(_later(_month(now), -1), _month(before))
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SET LOCAL lock_timeout = '500ms'")
            await connection.exec_driver_sql("SET LOCAL statement_timeout = '3s'")
            await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            name = (await connection.exec_driver_sql(_OLDEST)).scalar_one_or_none()
            if name is None:
                return None
            start = _start(name)
            began = (await connection.exec_driver_sql(_RUNNING_SINCE)).scalar_one_or_none()
            if start >= last or (began is not None and _later(start, 1) > began):
                return None
            await connection.exec_driver_sql("SELECT drop_month(%s)", (start.date(),))
        return start

    async def _all_exist(self, connection: AsyncConnection, starts: list[datetime]) -> bool:
        names = [_name(table, start) for start in starts for table in _TABLES]
        result = await connection.exec_driver_sql(
            "SELECT count(*) FROM unnest(%s::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name) "
            "WHERE c.relispartition",
            (names,),
        )
        return int(result.scalar_one()) == len(names)


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
