"""Scrubbing: what was deleted is overwritten or removed in the server's files, tables and log alike.

Owns which tables can hold what may be erased. Never deletes a row.
"""

import time
from collections.abc import Callable
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import sql

from db.conninfo import conninfo
from db.errors import SchemaMismatch, Unavailable, translated

Say: TypeAlias = Callable[[str], None]
_Connection: TypeAlias = psycopg.Connection[Any]

_LEAVES: Final[LiteralString] = """
    SELECT leaf.relid::regclass::text
    FROM (SELECT to_regclass(known) AS name FROM
            unnest(ARRAY['text_inputs', 'embeddings', 'predictions', 'feedback', 'idempotency']) AS t (known)) found,
        LATERAL (SELECT relid FROM pg_partition_tree(name) WHERE isleaf
            UNION SELECT name WHERE name IS NOT NULL AND NOT EXISTS (SELECT FROM pg_partition_tree(name))) AS leaf
    ORDER BY 1"""
_OWNS_THE_SERVER: Final[LiteralString] = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
_AHEAD: Final[LiteralString] = (
    "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' "
    "AND name > pg_walfile_name(pg_current_wal_insert_lsn())"
)
_OTHERS: Final[LiteralString] = (
    "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' "
    "AND name <> pg_walfile_name(pg_current_wal_insert_lsn())"
)
_LOG_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.5


def scrub(url: str, say: Say) -> bool:
    """Rewrites the tables, which nobody can use meanwhile, one after the other; whether the log was scrubbed too.

    The log is the business of whoever runs the server, and stays as it is unless the role is a superuser's.

    Raises:
        SchemaMismatch: it holds none of them.
        Unavailable: a table couldn't be had within ten seconds, or the log isn't let go: its archive takes nothing.
    """
    with translated(says_why=True), psycopg.connect(conninfo(url), autocommit=True) as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET lock_timeout = '10s'")
        tables = [row[0] for row in connection.execute(_LEAVES).fetchall()]
        if not tables:
            raise SchemaMismatch("the database holds none of Valence's tables: is it the right one?")
        owned = _one(connection, _OWNS_THE_SERVER)
        # Samples of columns, as an earlier release had them taken.
        for table in [*tables, *(["pg_catalog.pg_statistic"] if owned else [])]:
            say(table)
            name = sql.Identifier(*table.split("."))
            connection.execute(sql.SQL("VACUUM (FULL) {}").format(name))
            connection.execute(sql.SQL("ANALYZE {}").format(name))
        if owned:
            say("the log")
            _scrub_log(connection)
    return bool(owned)


def _scrub_log(connection: _Connection) -> None:
    """Fills the segments that lie ready for reuse, and has the ones before the present removed."""
    connection.execute("ALTER SYSTEM SET wal_recycle = off")
    try:
        connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + _LOG_SECONDS
        while True:
            for _ in range(1 + int(_one(connection, _AHEAD))):
                # Leaving a segment fills its rest with zeros.
                connection.execute("SELECT pg_logical_emit_message(false, 'scrub', '')")
                connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
            # The first checkpoint may not have heard of the setting, and have laid old segments ahead.
            if not _one(connection, _OTHERS):
                return
            if time.monotonic() > deadline:
                raise Unavailable("the server keeps its old log: is there room in VALENCE_WAL_ARCHIVE?")
            time.sleep(_LOOK_SECONDS)
    finally:
        connection.execute("ALTER SYSTEM RESET wal_recycle")
        connection.execute("SELECT pg_reload_conf()")


def _one(connection: _Connection, statement: LiteralString) -> Any:
    row = connection.execute(statement).fetchone()
    return None if row is None else row[0]
