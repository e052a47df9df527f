"""Tasks that can be stopped, killed or cancelled after any of their statements."""

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
    """A task that stops after its `at`-th statement and waits until `end` says how it ends.

    `killed`: its server process is killed, and the task never learns whether its last statement was committed.
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
        """Wait until the task has ended, has stopped, or waits for a lock of another session."""
        while not self.task.done() and not self._held.is_set():
            await asyncio.sleep(_POLL_SECONDS)
            waiting = await watcher.execute(
                "SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND wait_event_type = 'Lock'",
                (self._pid,),
            )
            if waiting.rowcount:
                return

    async def end(self, watcher: psycopg.AsyncConnection[Any], end: End = "goes on") -> None:
        """Let the task continue, or end it at its statement; return when it has ended."""
        self._end = end
        if self.task.done():
            return
        if self._held.is_set() or end == "goes on":
            self._told.set()
        elif end == "killed":
            # Between statements the server process may serve another task.
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
            # The client that waits for the reply notices this.
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
    """A `Database` whose statements report to the `InterruptibleTask` that they run in, if any."""

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
