"""The stored content of a database, and of its files, for tests of what must not be in them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from db.embedded.os_users import ServerUsers, find_binaries
from tests.support.postgres import TestServer


def read_tables(url: str) -> str:
    """Return all rows of all tables as text; binary columns are read as Latin-1."""
    texts: list[str] = []
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall()
        for (name,) in tables:
            rows = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))).fetchall()
            texts += (
                value.decode("latin-1") if isinstance(value, bytes) else str(value)
                for row in rows
                for value in row
            )
    return "\n".join(texts)


def dump_database(url: str) -> str:
    """Return a dump in plain SQL."""
    command = [find_binaries(ServerUsers.current()) / "pg_dump", "--dbname", url]
    return subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout


def find_in_files(server: TestServer, needles: Sequence[bytes]) -> list[bytes]:
    """Return the needles that any file of the server contains, its WAL included, after a checkpoint."""
    with psycopg.connect(server.server.url("postgres"), autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    folder = (server.server.home / "postgres").resolve()
    while (present := _read(folder, needles)) is None:
        pass
    return [needle for needle in needles if needle in present]


def _read(folder: Path, needles: Sequence[bytes]) -> set[bytes] | None:
    """Return the needles in the files of a running server.

    Return None if a file disappeared, or was renamed, while they were read.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("pg_wal" in path.parts for path in files)
    present: set[bytes] = set()
    for path in files:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        present.update(needle for needle in needles if needle in content)
    return present
