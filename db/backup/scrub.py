"""Scrubbing: what was deleted is overwritten or removed in the server's files, tables and log alike.

Owns which tables can hold what may be erased. Never deletes a row.
"""

import time
from collections.abc import Callable
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg import sql

from db.connection.databases import require_own_session
from db.core.urls import conninfo
from db.errors import NotPermitted, SchemaMismatch, Unavailable, translate_driver_errors

Say: TypeAlias = Callable[[str], None]
_Connection: TypeAlias = psycopg.Connection[Any]

_LEAVES: Final[LiteralString] = """
    SELECT leaf.relid::regclass::text, pg_has_role(relowner, 'USAGE')
    FROM (SELECT to_regclass(known) AS name FROM
            unnest(ARRAY['text_inputs', 'embeddings', 'predictions', 'feedback', 'idempotency']) AS t (known)) found,
        LATERAL (SELECT relid FROM pg_partition_tree(name) WHERE isleaf
            UNION SELECT name WHERE name IS NOT NULL AND NOT EXISTS (SELECT FROM pg_partition_tree(name))) AS leaf
        JOIN pg_class ON pg_class.oid = leaf.relid
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
        Unsuitable: a pooler stands in between.
        SchemaMismatch: it holds none of them.
        NotPermitted: they belong to another role.
        Unavailable: a table couldn't be had within ten seconds, or the log isn't let go: its archive takes nothing.
    """
    require_own_session(url, "scrubbing")
    with (
        translate_driver_errors(detailed=True),
        psycopg.connect(conninfo(url), autocommit=True) as connection,
    ):
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET lock_timeout = '10s'")
        found = connection.execute(_LEAVES).fetchall()
        if not found:
            raise SchemaMismatch("the database holds none of Valence's tables: is it the right one?")
        if not all(mine for _, mine in found):
            # The server would only warn, and skip them.
            raise NotPermitted(
                "the database's role doesn't own the tables: only their owner may write them anew"
            )
        tables = [name for name, _ in found]
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
