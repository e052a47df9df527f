"""Scrubbing: removal of deleted data from the server's files.

Overwrites or removes it in tables and in the WAL. Owns the list of tables that can hold erasable data. Never deletes
a row.
"""

import time
from collections.abc import Callable
from typing import Final, LiteralString

from psycopg import sql

from db.connection.databases import require_own_session
from db.core.blocking import connect, fetch_value
from db.core.sessions import BlockingConnection
from db.errors import NotPermitted, SchemaMismatch, Unavailable

_LEAVES: Final[LiteralString] = """
    SELECT leaf.relid::regclass::text, pg_has_role(relowner, 'USAGE')
    FROM (SELECT to_regclass(known) AS name FROM
            unnest(ARRAY['text_inputs', 'embeddings', 'predictions', 'feedback', 'idempotency']) AS t (known)) found,
        LATERAL (SELECT relid FROM pg_partition_tree(name) WHERE isleaf
            UNION SELECT name WHERE name IS NOT NULL AND NOT EXISTS (SELECT FROM pg_partition_tree(name))) AS leaf
        JOIN pg_class ON pg_class.oid = leaf.relid
    ORDER BY 1"""
_IS_SUPERUSER: Final[LiteralString] = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
_AHEAD: Final[LiteralString] = (
    "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' "
    "AND name > pg_walfile_name(pg_current_wal_insert_lsn())"
)
_OTHERS: Final[LiteralString] = (
    "SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' "
    "AND name <> pg_walfile_name(pg_current_wal_insert_lsn())"
)
# A rewrite keeps dead rows that an older snapshot may still see. Other roles' snapshots are shown to superusers alone.
_OLD_SNAPSHOTS: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT unnest(ARRAY[backend_xid, backend_xmin]) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
        UNION ALL SELECT backend_xmin FROM pg_stat_replication
        UNION ALL SELECT xmin FROM pg_replication_slots
        UNION ALL SELECT transaction FROM pg_prepared_xacts WHERE database = current_database()
    ) AS held (xid) WHERE age(xid) >= age(%s::text::xid)"""
_LOG_SECONDS: Final = 120.0
_SNAPSHOT_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.5


def scrub(url: str, report: Callable[[str], None]) -> bool:
    """Rewrite the tables one by one and return whether the WAL was scrubbed too; a table is locked meanwhile.

    The WAL is scrubbed only for a superuser; otherwise it is the server operator's task. `report` gets the name of
    each table.

    Raises:
        Unsuitable: a pooler is in between.
        SchemaMismatch: the database has none of the tables.
        NotPermitted: the tables belong to another role.
        Unavailable: a table stayed locked for ten seconds, an older transaction didn't end, or the server keeps its
            old log because archiving fails.
    """
    require_own_session(url, "scrubbing")
    with connect(url, autocommit=True) as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET lock_timeout = '10s'")
        leaves = connection.execute(_LEAVES).fetchall()
        if not leaves:
            raise SchemaMismatch("the database holds none of Valence's tables: is it the right one?")
        if not all(owned for _, owned in leaves):
            # The server would only warn and skip them.
            raise NotPermitted(
                "the database's role doesn't own the tables: only their owner may rewrite them"
            )
        tables = [name for name, _ in leaves]
        is_superuser = fetch_value(connection, _IS_SUPERUSER)
        _wait_for_older_transactions(connection)
        # `pg_statistic` may still hold samples of columns that an earlier release took.
        for table in [*tables, *(["pg_catalog.pg_statistic"] if is_superuser else [])]:
            report(table)
            name = sql.Identifier(*table.split("."))
            connection.execute(sql.SQL("VACUUM (FULL) {}").format(name))
            connection.execute(sql.SQL("ANALYZE {}").format(name))
        if is_superuser:
            report("the WAL")
            _scrub_wal(connection)
    return bool(is_superuser)


def _wait_for_older_transactions(connection: BlockingConnection) -> None:
    """Wait until nobody can still see the rows that were deleted before now."""
    now = fetch_value(connection, "SELECT pg_current_xact_id()::xid::text")
    deadline = time.monotonic() + _SNAPSHOT_SECONDS
    while connection.execute(_OLD_SNAPSHOTS, [now]).fetchone() != (0,):
        if time.monotonic() > deadline:
            raise Unavailable("a transaction of before still sees deleted rows: end it, or scrub again later")
        time.sleep(_POLL_SECONDS)


def _scrub_wal(connection: BlockingConnection) -> None:
    """Overwrite the WAL segments that wait for reuse, and have those before the current one removed."""
    connection.execute("ALTER SYSTEM SET wal_recycle = off")
    try:
        connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + _LOG_SECONDS
        while True:
            for _ in range(1 + int(fetch_value(connection, _AHEAD))):
                # Switching away from a segment fills its rest with zeros.
                connection.execute("SELECT pg_logical_emit_message(false, 'scrub', '')")
                connection.execute("SELECT pg_switch_wal()")
            connection.execute("CHECKPOINT")
            # The first checkpoint may miss the setting and keep old segments for reuse.
            if not fetch_value(connection, _OTHERS):
                return
            if time.monotonic() > deadline:
                raise Unavailable("the server keeps its old log: is there room in VALENCE_WAL_ARCHIVE?")
            time.sleep(_POLL_SECONDS)
    finally:
        connection.execute("ALTER SYSTEM RESET wal_recycle")
        connection.execute("SELECT pg_reload_conf()")
