"""The month partitions of predictions and feedback, made ahead of time and dropped when they expire.

Owns their names and bounds.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from db.accounts import audit
from db.connection.repository import Repository, run_sql
from db.core.ids import uuid7_time

_LOCK = 0x56414C_5041_5254
_TABLES = ("predictions", "feedback")
NOTICE: Final = timedelta(days=1)
"""The time from a month's first being found expired to its drop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionRange:
    """The time [start, end) around now in which every month has a partition."""

    start: datetime
    end: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpiredMonth:
    """A month that has expired: dropped now, or noted as the next to go."""

    start: datetime
    is_dropped: bool


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

    async def drop_oldest(self, now: datetime, age: timedelta) -> ExpiredMonth | None:
        """Note that the oldest month has expired, or drop it a day after that; return it, or None if nothing changed.

        A month has expired if it ended `age` before `now` and before the newest prediction, so a clock that is wrong
        for less than a day, or is the only wrong one, costs no month. At most one month goes in a day.
        The months that `ensure` makes stay, and so does every month since a running experiment began. It waits at
        most 0.5 s for its locks and holds them for at most 3 s.

        Args:
            now: the database's time.
            age: the time that predictions are kept.

        Raises:
            Unavailable: it didn't get its locks, or needed them for longer.
        """
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SET LOCAL lock_timeout = '500ms'")
            await connection.exec_driver_sql("SET LOCAL statement_timeout = '3s'")
            await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            oldest = await _read_start(connection)
            state = (await run_sql(connection, _EXPIRY)).one()
            if oldest is None or not _has_expired(oldest, now, age, newest=state.newest, began=state.began):
                if state.noted is not None:
                    await run_sql(connection, _FORGET)
                return None
            if state.noted != oldest.date() or state.noted_at > now:
                await run_sql(connection, _NOTE, month=oldest.date(), now=now)
                return ExpiredMonth(start=oldest, is_dropped=False)
            if now - state.noted_at < NOTICE:
                return None
            await run_sql(connection, _FORGET)
            await connection.exec_driver_sql("SELECT drop_month(%s)", (oldest.date(),))
            await audit.append(connection, actor=None, action="month.drop", subject=f"{oldest:%Y-%m}")
        return ExpiredMonth(start=oldest, is_dropped=True)

    async def read_start(self) -> datetime | None:
        """Return the start of the oldest month; None if there is none."""
        async with self._database.begin() as connection:
            return await _read_start(connection)

    async def _all_exist(self, connection: AsyncConnection, starts: list[datetime]) -> bool:
        names = [_name(table, start) for start in starts for table in _TABLES]
        result = await connection.exec_driver_sql(
            "SELECT count(*) FROM unnest(%s::text[]) AS name JOIN pg_class c ON c.oid = to_regclass(name) "
            "WHERE c.relispartition",
            (names,),
        )
        return int(result.scalar_one()) == len(names)


_OLDEST: Final[LiteralString] = (
    "SELECT min(c.relname) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
    "WHERE i.inhparent = 'predictions'::regclass"
)
_EXPIRY: Final[LiteralString] = """
    SELECT (SELECT id FROM predictions ORDER BY id DESC LIMIT 1) AS newest,
        (SELECT min(created_at) FROM experiments WHERE state = 'running') AS began,
        noted.month AS noted, noted.noted_at
    FROM (VALUES (1)) AS one LEFT JOIN expired_month AS noted ON true"""
_NOTE: Final[LiteralString] = (
    "INSERT INTO expired_month (month, noted_at) VALUES (:month, :now) "
    "ON CONFLICT (single) DO UPDATE SET month = excluded.month, noted_at = excluded.noted_at"
)
_FORGET: Final[LiteralString] = "DELETE FROM expired_month"


async def _read_start(connection: AsyncConnection) -> datetime | None:
    name = (await run_sql(connection, _OLDEST)).scalar_one_or_none()
    return None if name is None else _start(name)


def _has_expired(
    month: datetime, now: datetime, age: timedelta, *, newest: UUID | None, began: datetime | None
) -> bool:
    latest = now if newest is None else min(now, uuid7_time(newest))
    end = _later(month, 1)
    is_made_ahead = month >= _later(_month(now), -1)
    return not is_made_ahead and end <= latest - age and (began is None or end <= began)


def _name(table: str, start: datetime) -> str:
    return f"{table}_{start:%Y_%m}"


def _start(name: str) -> datetime:
    return datetime.strptime(name.removeprefix("predictions_"), "%Y_%m").replace(tzinfo=UTC)


def _month(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _later(month: datetime, months: int) -> datetime:
    years, index = divmod(month.month - 1 + months, 12)
    return month.replace(year=month.year + years, month=index + 1)
