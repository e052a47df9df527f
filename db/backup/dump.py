"""Dumps: one database at one moment, taken and loaded by PostgreSQL's own tools.

Owns the calls of those tools; a password reaches them by the environment. Never decides what belongs to a backup.
"""

import subprocess
from pathlib import Path

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from db.connection.databases import require_own_session
from db.core.blocking import connect, fetch_value
from db.core.urls import conninfo
from db.embedded.os_users import ServerUsers, find_binaries
from db.embedded.tools import clean_environment, last_line
from db.errors import BackupFailed


def dump(url: str, file: Path) -> None:
    """Write a database at one moment to `file`, in PostgreSQL's custom format; nobody has to wait for it.

    Raises Unsuitable if a pooler is in between, BackupFailed with the tool's last line if it fails.
    """
    require_own_session(url, "pg_dump")
    arguments = ["--format", "custom", "--no-owner", "--no-privileges", "--file", str(file)]
    run_tool("pg_dump", [*arguments, "--lock-wait-timeout", "30s"], url)


def load(url: str, file: Path) -> None:
    """Fill an empty database from such a file, completely or not at all.

    Raises Unsuitable if a pooler is in between, BackupFailed with the tool's last line if it fails.
    """
    require_own_session(url, "pg_restore")
    arguments = ["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", str(file)]
    run_tool("pg_restore", arguments, url, tail=True)
    with connect(url, autocommit=True) as connection:
        # A dump has no statistics, and without them the first searches get bad plans.
        connection.execute("ANALYZE")


def run_tool(name: str, arguments: list[str], url: str, *, tail: bool = False) -> None:
    """Run a tool of PostgreSQL on a database; with `tail`, `arguments` come last on its command line.

    Raises BackupFailed with its last line if it fails.
    """
    parameters = conninfo_to_dict(conninfo(url))
    environment = clean_environment()
    if (password := parameters.pop("password", None)) is not None:
        environment["PGPASSWORD"] = str(password)
    target = ["--dbname", make_conninfo("", **parameters)]
    result = subprocess.run(
        [
            str(find_binaries(ServerUsers.current()) / name),
            *(target + arguments if tail else arguments + target),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if result.returncode != 0:
        raise BackupFailed(f"{name} failed: {last_line(result.stderr)}")


def read_server_version(url: str) -> str:
    """Return PostgreSQL's major version."""
    with connect(url) as connection:
        return str(connection.info.server_version // 10_000)


def read_key_fingerprint(url: str) -> bytes | None:
    """Return the fingerprint of the installation key that filled the database; None if none has."""
    with connect(url) as connection:
        fingerprint = fetch_value(connection, "SELECT key_fingerprint FROM installation")
    return None if fingerprint is None else bytes(fingerprint)


def has_tables(url: str) -> bool:
    """Return whether the database has any table."""
    with connect(url) as connection:
        return bool(
            fetch_value(
                connection,
                "SELECT EXISTS (SELECT FROM pg_class WHERE relkind IN ('r', 'p') "
                "AND relnamespace = 'public'::regnamespace)",
            )
        )


def replace_uri(url: str, old: str, new: str) -> None:
    """Replace a URI by another in every text column: MLflow stores absolute URIs."""
    with connect(url) as connection:
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
