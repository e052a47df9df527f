"""Real PostgreSQL for tests: one embedded server, one migrated template, one cloned database a test.

The server's files are in a temporary home, in memory where there is room; no running platform is touched.
"""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

from db.connection.engine import Database, Limits
from db.core.cipher import Cipher
from db.embedded.server import EmbeddedPostgres
from db.embeddings.segments import Segments
from db.predictions.partitions import Partitions
from db.schema import revisions

SPACE = "test-space"
KEY = b"an installation key for the tests only"
TEMPLATE = "template_valence"
# A disk takes 40 times as long as memory to copy the template.
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 4 << 30


class TestServer:
    """An embedded server whose `database()` is a fresh clone of the migrated schema."""

    __test__ = False

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._numbers = count(1)
        # Most tests create and drop databases; tests of durability start their own servers.
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            # A database that is dropped is looked for in every buffer.
            connection.execute("ALTER SYSTEM SET shared_buffers = '64MB'")
        server.stop()
        server.start()
        revisions.upgrade(server.create_database(TEMPLATE))

    def empty(self) -> str:
        """Return the URL of a new database without a schema."""
        return self.server.create_database(f"empty_{next(self._numbers)}")

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of a new database with the schema; drop it afterwards."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
            connection.execute(
                # Half the work of a copy through the WAL.
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(TEMPLATE)
                )
            )
        try:
            yield self.server.url(name)
        finally:
            with psycopg.connect(self.server.url("postgres"), autocommit=True) as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def running_server() -> Iterator[TestServer]:
    """Run a server for the session; its files go afterwards."""
    home = Path(tempfile.mkdtemp(prefix="valence-test-", dir=_memory()))
    home.chmod(0o755)
    server = EmbeddedPostgres(home)
    server.start()
    try:
        yield TestServer(server)
    finally:
        server.stop()
        shutil.rmtree(home)


def _memory() -> Path | None:
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    return MEMORY if roomy and os.access(MEMORY, os.W_OK) else None


@asynccontextmanager
async def open_database(
    url: str,
    *,
    space: str = SPACE,
    limits: Limits | None = None,
    pooler: bool | None = None,
    read_url: str | None = None,
    direct_url: str | None = None,
    cipher: Cipher | None = None,
    kind: type[Database] = Database,
) -> AsyncIterator[Database]:
    """Yield an open database with this month's partitions and an open segment."""
    database = kind(
        url,
        read_url=read_url,
        direct_url=direct_url,
        installation_key=KEY,
        cipher=cipher,
        limits=limits,
        pooler=pooler,
    )
    try:
        await database.open()
        await Partitions(database).ensure(datetime.now(UTC))
        await Segments(database, space).ensure()
        yield database
    finally:
        await database.close()
