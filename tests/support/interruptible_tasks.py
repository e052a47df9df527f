"""A database on which a task is held or killed after any statement that it chooses beforehand."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Literal, TypeAlias

import psycopg

from db.connection.engine import Database

End: TypeAlias = Literal["goes on", "killed", "cancelled"]

_TASK: ContextVar["InterruptibleTask | None"] = ContextVar("task", default=None)
_POLL_SECONDS = 0.002


class InterruptibleTask:
    """A task that stops once its `at`-th statement has run, and there waits until it is told how to end.

    `killed`: its server process is, and whether its last statement was committed is never told.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], *, at: int = 0) -> None:
        self._at = at
        self._run = 0
        self._pid = 0
        self._busy = False
        self._held = asyncio.Event()
        self._told = asyncio.Event()
        self._end: End = "goes on"
        context = copy_context()
        context.run(_TASK.set, self)
        self.task = asyncio.create_task(work, context=context)

    async def wait_until_blocked(self, watcher: psycopg.AsyncConnection[Any]) -> None:
        """Until the task has ended, is held, or waits for a lock that another has."""
        while not self.task.done() and not self._held.is_set():
            await asyncio.sleep(_POLL_SECONDS)
            found = await watcher.execute(
                "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND wait_event_type = 'Lock'",
                (self._pid,),
            )
            if found.rowcount:
                return

    async def end(self, watcher: psycopg.AsyncConnection[Any], end: End = "goes on") -> None:
        """Lets it go on, or ends it where it stands; returns when it has ended."""
        self._end = end
        if self.task.done():
            return
        if self._held.is_set() or end == "goes on":
            self._told.set()
        elif end == "killed":
            # Between statements the process may serve another task.
            if self._busy:
                await _terminate(watcher, self._pid)
        else:
            self.task.cancel()
        await asyncio.wait([self.task])

    async def after(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._run += 1
        if self._run != self._at:
            return
        self._held.set()
        await self._told.wait()
        self._held.clear()
        if self._end == "cancelled":
            raise asyncio.CancelledError
        if self._end == "killed":
            async with await psycopg.AsyncConnection.connect(connection.info.dsn, autocommit=True) as other:
                await _terminate(other, connection.info.backend_pid)
            # As who waits for the reply notices.
            connection.pgconn.finish()
            raise psycopg.OperationalError("the server process was killed")

    @contextmanager
    def statement(self, connection: psycopg.AsyncConnection[Any]) -> Iterator[None]:
        self._pid, self._busy = connection.info.backend_pid, True
        try:
            yield
        finally:
            self._busy = False


class InterruptibleDatabase(Database):
    """A `Database` whose statements follow the script of the task they run in, if it has one."""

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), "cursor_factory": _Cursor}


class _Cursor(psycopg.AsyncCursor[Any]):
    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        script = _TASK.get()
        if script is None:
            return await super().execute(*args, **kwargs)
        with script.statement(self.connection):
            result = await super().execute(*args, **kwargs)
        await script.after(self.connection)
        return result


async def _terminate(connection: psycopg.AsyncConnection[Any], pid: int) -> None:
    await connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
