"""Dumps: one database at one moment, by PostgreSQL's own tools, taken and loaded.

Owns how those tools are called; a password reaches them by the environment. Never decides what belongs to a backup.
"""

import os
import subprocess
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from db.connection.databases import require_own_session
from db.core.urls import conninfo
from db.embedded.account import Account, find_binaries
from db.errors import BackupFailed, translate_driver_errors

_FOREIGN: Final = ("PG", "LC_", "LD_")


def dump(url: str, file: Path) -> None:
    """Writes a database to `file`, in PostgreSQL's custom format, as it is at one moment; nobody has to wait for it.

    Raises:
        Unsuitable: a pooler stands in between.
        BackupFailed: the tool failed; the message is its last line.
    """
    require_own_session(url, "pg_dump")
    arguments = ["--format", "custom", "--no-owner", "--no-privileges", "--file", str(file)]
    run_tool("pg_dump", [*arguments, "--lock-wait-timeout", "30s"], url)


def load(url: str, file: Path) -> None:
    """Fills an empty database from such a file, wholly or not at all.

    Raises:
        Unsuitable: a pooler stands in between.
        BackupFailed: the tool failed; the message is its last line.
    """
    require_own_session(url, "pg_restore")
    arguments = ["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", str(file)]
    run_tool("pg_restore", arguments, url, tail=True)
    with translate_driver_errors(), psycopg.connect(conninfo(url), autocommit=True) as connection:
        # A dump has no statistics, and without them the first searches would be planned badly.
        connection.execute("ANALYZE")


def run_tool(name: str, arguments: list[str], url: str, *, tail: bool = False) -> None:
    """Runs a tool of PostgreSQL on a database; `tail`: what it works on comes last on its command line.

    Raises:
        BackupFailed: it failed; the message is its last line.
    """
    parameters = conninfo_to_dict(conninfo(url))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    if (password := parameters.pop("password", None)) is not None:
        environment["PGPASSWORD"] = str(password)
    target = ["--dbname", make_conninfo("", **parameters)]
    done = subprocess.run(
        [str(find_binaries(Account.current()) / name), *(target + arguments if tail else arguments + target)],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "LANG": "C"},
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BackupFailed(f"{name} failed: {lines[-1].strip() if lines else done.returncode}")


def read_server_version(url: str) -> str:
    """PostgreSQL's version."""
    with translate_driver_errors(), psycopg.connect(conninfo(url)) as connection:
        return str(connection.info.server_version // 10_000)


def read_key_fingerprint(url: str) -> bytes | None:
    """The fingerprint of the installation key that filled the database; None if none has."""
    with translate_driver_errors(), psycopg.connect(conninfo(url)) as connection:
        row = connection.execute("SELECT key_fingerprint FROM installation").fetchone()
    return None if row is None else bytes(row[0])


def has_tables(url: str) -> bool:
    """Whether there is any table in the database."""
    with translate_driver_errors(), psycopg.connect(conninfo(url)) as connection:
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM pg_class WHERE relkind IN ('r', 'p') "
            "AND relnamespace = 'public'::regnamespace)"
        ).fetchone()
    return bool(row and row[0])


def replace_uri(url: str, old: str, new: str) -> None:
    """Replaces a URI by another one wherever a text of the database holds it: MLflow keeps absolute ones."""
    with translate_driver_errors(), psycopg.connect(conninfo(url)) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.tables "
            "USING (table_schema, table_name) WHERE table_schema = 'public' AND table_type = 'BASE TABLE' "
            "AND data_type IN ('text', 'character varying')"
        ).fetchall()
        for table, column in columns:
            connection.execute(
                sql.SQL(
                    "UPDATE {table} SET {column} = replace({column}, %(old)s, %(new)s) "
                    "WHERE position(%(old)s in {column}) > 0"
                ).format(table=sql.Identifier(table), column=sql.Identifier(column)),
                {"old": old, "new": new},
            )
