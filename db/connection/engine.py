"""Connections: one `Database` a process, with separate pools for reading and writing.

Owns pools, timeouts and the checks at opening. Knows no table and no statement except those of the checks.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import QueuePool, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from db.core.cipher import Cipher
from db.core.ids import fingerprint
from db.core.sessions import FORMATS, PORTABLE, set_parameters
from db.core.urls import check_server, conninfo
from db.errors import ForeignInstallation, ForeignTextKeys, translate_driver_errors
from db.schema import revisions

PsycopgConnection: TypeAlias = psycopg.AsyncConnection[TupleRow]
ConnectionObserver: TypeAlias = Callable[[str], AbstractContextManager[object]]
WaitForNotice: TypeAlias = Callable[[float], Awaitable[None]]
_Pool: TypeAlias = AsyncConnectionPool[PsycopgConnection]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Time limits in seconds, and the most connections of each kind.

    A connection lives for `connection_seconds`: its server process remembers every table that it has ever used, and
    segments come and go.
    """

    statement_seconds: float = 30.0
    lock_seconds: float = 5.0
    connect_seconds: float = 5.0
    connection_seconds: float = 900.0
    writers: int = 2
    readers: int = 2
    searchers: int = 4
    repositories: int = 4


_PREPARE_AFTER = 2
IDLE_IN_TRANSACTION: Final = "60s"
INSERT_TEXT_KEY: Final[LiteralString] = (
    "INSERT INTO text_keys (id, fingerprint) VALUES (:id, :fingerprint) ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolState:
    """The connections of one kind in this process.

    `waiting` callers wait for a connection; it is None if the pool doesn't report it.
    """

    name: str
    limit: int
    open: int
    idle: int
    waiting: int | None


class Database:
    """PostgreSQL for the repositories and the writer; usable between `open` and `close`.

    Args:
        read_url: a read replica, for searches and lists.
        direct_url: a URL past the pooler, for notices.
        cipher: seals and opens what people wrote.
        pooler: whether a transaction pooler (PgBouncer) is in between: then nothing is prepared, no session parameter
            is set, and timeouts come from the roles. None: each connection finds out.
        watch: a context manager around each use of a connection, called with the name of its kind.
    """

    def __init__(
        self,
        url: str,
        *,
        read_url: str | None = None,
        direct_url: str | None = None,
        installation_key: bytes | None = None,
        cipher: Cipher | None = None,
        limits: Limits | None = None,
        pooler: bool | None = None,
        watch: ConnectionObserver | None = None,
    ) -> None:
        self._watch: ConnectionObserver = watch or nullcontext
        self._limits = limits or Limits()
        self._pooler = pooler
        self._key = installation_key
        self.cipher = cipher or Cipher()
        self._url = conninfo(url)
        self._read_url = conninfo(read_url) if read_url else self._url
        self._direct_url = conninfo(direct_url) if direct_url else None
        self._engine = self._make_engine(self._url)
        self._read_engine = self._make_engine(self._read_url) if read_url else self._engine
        self._writers: _Pool | None = None
        self._readers: _Pool | None = None
        self._searchers: _Pool | None = None
        self._halfvec = 0
        self._checks: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        """Connect, and check server, extension, schema, installation key and text keys.

        Raises:
            Unavailable: the database can't be reached.
            Unsuitable: it can be reached but not used; the message says what to do.
        """
        if self._writers is not None:
            # Nobody would close the first pools, whose tasks then outlive their loop.
            raise RuntimeError("the database is open already")
        with translate_driver_errors(detailed=True):
            await self._check()
        self._writers = self._make_pool(self._url, self._limits.writers, "writers", writing=True)
        self._readers = self._make_pool(self._url, self._limits.readers, "readers", writing=False)
        self._searchers = self._make_pool(self._read_url, self._limits.searchers, "searchers", writing=False)
        for pool in (self._writers, self._readers, self._searchers):
            await pool.open()

    async def close(self) -> None:
        """Close every connection; borrowed ones are closed when they return."""
        for pool in (self._writers, self._readers, self._searchers):
            if pool is not None:
                await pool.close()
        self._writers = self._readers = self._searchers = None
        await self._engine.dispose()
        if self._read_engine is not self._engine:
            await self._read_engine.dispose()

    @property
    def halfvec_oid(self) -> int:
        """The type's number in this database, which binary arrays of vectors must name."""
        return self._halfvec

    def list_pools(self) -> list[PoolState]:
        """Return the present state of every pool without asking the server."""
        states = []
        for pool in (self._writers, self._readers, self._searchers):
            if pool is not None:
                stats = pool.get_stats()
                states.append(
                    PoolState(
                        name=pool.name.removeprefix("valence-"),
                        limit=pool.max_size,
                        open=stats.get("pool_size", 0),
                        idle=stats.get("pool_available", 0),
                        waiting=stats.get("requests_waiting", 0),
                    )
                )
        engines = {"repositories": self._engine}
        if self._read_engine is not self._engine:
            engines["lists"] = self._read_engine
        for name, engine in engines.items():
            queue = engine.pool
            if isinstance(queue, QueuePool):
                states.append(
                    PoolState(
                        name=name,
                        limit=queue.size(),
                        open=queue.checkedin() + queue.checkedout(),
                        idle=queue.checkedin(),
                        waiting=None,
                    )
                )
        return states

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Yield a transaction for a repository: committed at the end, rolled back by any exception."""
        with translate_driver_errors(), self._watch("transaction"):
            async with self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Yield an autocommit connection for a repository's lists, to the read replica if there is one."""
        with translate_driver_errors(), self._watch("list"):
            async with self._read_engine.connect() as connection:
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def hot_read(self) -> AsyncIterator[PsycopgConnection]:
        """Yield a plain psycopg connection in autocommit, for cheap reads that must see the last commit."""
        with translate_driver_errors(), self._watch("read"):
            async with self._borrow(self._readers) as connection:
                yield connection

    @asynccontextmanager
    async def search(self) -> AsyncIterator[PsycopgConnection]:
        """Yield a plain psycopg connection in a transaction, to the read replica if there is one.

        Statements are sent together until rows are fetched: on a busy machine each wait for the server costs more
        than the statement.
        """
        with translate_driver_errors(), self._watch("search"):
            async with (
                self._borrow(self._searchers) as connection,
                connection.pipeline(),
                connection.transaction(),
            ):
                yield connection

    @asynccontextmanager
    async def hot_write(self) -> AsyncIterator[PsycopgConnection]:
        """Yield a plain psycopg connection in autocommit, for the writer, which needs psycopg's own errors."""
        with self._watch("write"):
            async with self._borrow(self._writers) as connection:
                yield connection

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[WaitForNotice]:
        """Yield a function that waits for the next notice on a channel, at most the given seconds.

        Behind a pooler, which passes no notices on, it waits for the seconds.
        """
        with translate_driver_errors():
            connection = await psycopg.AsyncConnection.connect(
                self._direct_url or self._url, **self._parameters(), autocommit=True
            )
            async with connection:
                # `pooler` describes the main URL only.
                if await _is_pooled(connection, None if self._direct_url else self._pooler):
                    await connection.close()
                    yield asyncio.sleep
                    return
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

                async def notice(seconds: float) -> None:
                    async for _ in connection.notifies(timeout=seconds, stop_after=1):
                        return

                yield notice

    @asynccontextmanager
    async def _borrow(self, pool: _Pool | None) -> AsyncIterator[PsycopgConnection]:
        if pool is None:
            raise RuntimeError("the database isn't open: call `await database.open()` first")
        async with pool.connection() as connection:
            try:
                yield connection
            except psycopg.OperationalError:
                if connection.broken:
                    # The server went away, and the idle connections with it: remove them before their next use.
                    task = asyncio.ensure_future(pool.check())
                    self._checks.add(task)
                    task.add_done_callback(self._checks.discard)
                raise

    def _parameters(self) -> dict[str, Any]:
        return {
            "connect_timeout": max(2, round(self._limits.connect_seconds)),
            # Until the connection knows that no pooler shares its session.
            "prepare_threshold": None,
            "application_name": "valence",
        }

    async def _set_up(self, connection: PsycopgConnection, *, writing: bool) -> None:
        """Set the session's parameters in one statement; behind a transaction pooler only those that it keeps apart."""
        if await _is_pooled(connection, self._pooler):
            await connection.execute(set_parameters(PORTABLE))
            return
        limits = self._limits
        settings = {
            **FORMATS,
            "statement_timeout": f"{round(limits.statement_seconds * 1000)}",
            "lock_timeout": f"{round(limits.lock_seconds * 1000)}",
            "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
            # A dead client must not hold its locks until TCP gives up.
            "client_connection_check_interval": "5000",
        }
        if writing:
            # The writer's statement always gets the same plan, and planning costs more than running.
            settings["plan_cache_mode"] = "force_generic_plan"
        await connection.execute(set_parameters(settings))
        connection.prepare_threshold = _PREPARE_AFTER

    def _make_engine(self, url: str) -> AsyncEngine:
        async def connect() -> psycopg.AsyncConnection[Any]:
            connection = await psycopg.AsyncConnection.connect(url, **self._parameters())
            try:
                await self._set_up(connection, writing=False)
                await connection.commit()
            except BaseException:
                # The caller may have been cancelled, and nothing else knows this connection yet.
                await connection.close()
                raise
            return connection

        return create_async_engine(
            "postgresql+psycopg://",
            async_creator=connect,
            pool_size=self._limits.repositories,
            max_overflow=0,
            pool_timeout=self._limits.connect_seconds,
            pool_pre_ping=True,
            pool_recycle=round(self._limits.connection_seconds),
            hide_parameters=True,
        )

    def _make_pool(self, url: str, size: int, name: str, *, writing: bool) -> _Pool:
        async def configure(connection: PsycopgConnection) -> None:
            await self._set_up(connection, writing=writing)

        return AsyncConnectionPool(
            url,
            kwargs={**self._parameters(), "autocommit": True},
            min_size=1,
            max_size=size,
            open=False,
            configure=configure,
            name=f"valence-{name}",
            timeout=self._limits.connect_seconds,
            max_lifetime=self._limits.connection_seconds,
            # After an outage the next caller connects at once, not after the pool's growing pauses.
            reconnect_timeout=0.5,
        )

    async def _check(self) -> None:
        async with self._engine.begin() as connection:
            await connection.run_sync(check_server)
            await self._check_schema(connection)
            await self._check_key(connection)
            await self._check_text_keys(connection)
            oid = await connection.exec_driver_sql("SELECT 'halfvec'::regtype::oid")
            self._halfvec = int(oid.scalar_one())

    async def _check_schema(self, connection: AsyncConnection) -> None:
        revision = await connection.run_sync(revisions.current)
        if not revisions.is_compatible(revision):
            raise revisions.mismatch_error(revision)

    async def _check_key(self, connection: AsyncConnection) -> None:
        if self._key is None:
            return
        own = fingerprint(self._key)
        await connection.exec_driver_sql(
            "INSERT INTO installation (key_fingerprint) VALUES (%s) ON CONFLICT DO NOTHING", (own,)
        )
        stored = await connection.exec_driver_sql("SELECT key_fingerprint FROM installation")
        if bytes(stored.scalar_one()) != own:
            raise ForeignInstallation(
                "this database was filled under another installation key, so text ids would differ: "
                "set VALENCE_INSTALLATION_KEY to that installation's key, or use another database"
            )

    async def _check_text_keys(self, connection: AsyncConnection) -> None:
        given, sealing_key = self.cipher.fingerprints, self.cipher.sealing_key
        if sealing_key is not None:
            own = {"id": sealing_key, "fingerprint": given[sealing_key]}
            await connection.execute(text(INSERT_TEXT_KEY), own)
        for row in await connection.exec_driver_sql("SELECT id, fingerprint FROM text_keys ORDER BY id"):
            if row.id not in given:
                raise ForeignTextKeys(
                    f"texts are encrypted under the key {row.id}, which VALENCE_TEXT_KEYS doesn't give: add it "
                    "there; remove it once `valence db encrypt` finds nothing under it"
                )
            if bytes(row.fingerprint) != given[row.id]:
                raise ForeignTextKeys(
                    f"VALENCE_TEXT_KEYS gives another key as {row.id} than the one that texts are encrypted under: "
                    "restore that key, and give the new one its own id"
                )


async def _is_pooled(connection: PsycopgConnection, known: bool | None) -> bool:
    """Return whether a pooler is in between: then another process answers than the one that took the connection."""
    if known is not None:
        return known
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    return row is None or int(row[0]) != connection.info.backend_pid
