"""Retries of short transactions after a deadlock, a lock timeout or a serialization failure."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.engine import Database
from db.errors import Unavailable

Result = TypeVar("Result")

_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 0.5
_LOCK_LIMIT: Final = "SET LOCAL lock_timeout = '2s'"


async def retry_transaction(
    database: Database, work: Callable[[AsyncConnection], Awaitable[Result]], *, attempts: int = _ATTEMPTS
) -> Result:
    """Run `work` in its own transaction and return its result; after a conflict, roll back and run it again.

    An attempt waits up to 2 s for a lock, so that what waits behind it isn't held up for longer.

    Raises Unavailable if every attempt met a conflict, or the database can't be used.
    """
    for number in range(1, attempts + 1):
        try:
            async with database.begin() as connection:
                await connection.exec_driver_sql(_LOCK_LIMIT)
                return await work(connection)
        except Unavailable as error:
            if number == attempts or not _is_conflict(error):
                raise
        await _pause(min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2**number))
    raise AssertionError


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _is_conflict(error: Unavailable) -> bool:
    cause = error.__cause__
    original = cause.orig if isinstance(cause, DBAPIError) else cause
    return isinstance(original, (pg.DeadlockDetected, pg.LockNotAvailable, pg.SerializationFailure))
