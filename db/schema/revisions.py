"""The schema's version: upgrade, downgrade, and whether migrations and tables agree.

Owns the calls of Alembic. A change is one transaction under one advisory lock, so two at once are safe.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine

from db.core.sessions import open_session
from db.core.urls import check_server, conninfo
from db.errors import DatabaseError, SchemaMismatch, Unavailable, translate_driver_errors
from db.schema.tables import Base

_LOCK = 0x56414C_454E_4345
_POLL_SECONDS = 1.0
_PARTITIONED = ("predictions_", "feedback_", "embeddings_")


@cache
def head() -> str:
    """Return the revision that this release needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise SchemaMismatch("this installation of Valence has no migrations: reinstall it")
    return revision


def current(connection: Connection) -> str | None:
    """Return the database's revision; None without a schema."""
    return MigrationContext.configure(connection).get_current_revision()


def read_current(url: str) -> str | None:
    """Return the revision of the database at `url`; None without a schema."""
    with _connect(url) as connection:
        return current(connection)


def can_upgrade_from(revision: str) -> bool:
    """Return whether this release can upgrade a schema from that revision."""
    return revision in _revisions()


def is_compatible(revision: str | None) -> bool:
    """Return whether this release works with that revision: its own, or a later one, which stays compatible."""
    return revision is not None and revision >= head()


def mismatch_error(revision: str | None) -> SchemaMismatch:
    """Return the error for a revision that this release doesn't work with."""
    return SchemaMismatch(
        f"the database's schema is at {revision or 'nothing'}, this release needs {head()}: "
        "run `valence db upgrade`"
    )


def wait_until_compatible(url: str, seconds: float) -> str:
    """Wait until the schema suits this release, and return its revision; the server may start meanwhile.

    Raises SchemaMismatch if it doesn't within `seconds`, Unavailable if the server doesn't answer within them.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if (revision := read_current(url)) is not None and is_compatible(revision):
                return revision
            failure: DatabaseError = mismatch_error(revision)
        except Unavailable as error:
            failure = error
        if time.monotonic() > deadline:
            raise failure
        time.sleep(_POLL_SECONDS)


def upgrade(url: str, revision: str = "head") -> str | None:
    """Upgrade the schema to `revision` and return its new revision; safe while others do the same."""
    with _connect_locked(url) as connection:
        check_server(connection)
        _require_known(connection)
        if revision == "head" and current(connection) == head():
            # A role that may not change the schema may still call this when nothing is to do.
            return head()
        command.upgrade(_config(connection), revision)
        return current(connection)


def downgrade(url: str, revision: str) -> str | None:
    """Downgrade the schema to `revision` and return its new revision; `base` removes everything, data included."""
    with _connect_locked(url) as connection:
        _require_known(connection)
        command.downgrade(_config(connection), revision)
        return current(connection)


def find_differences(url: str) -> list[str]:
    """Return the differences between the database's tables and `db.schema.tables`; empty if they agree."""
    with _connect(url) as connection:
        context = MigrationContext.configure(connection, opts=comparison_options())
        return [str(difference) for difference in compare_metadata(context, Base.metadata)]


def comparison_options() -> dict[str, Any]:
    """Return Alembic's options of a comparison: types and defaults too; partitions are data, not schema."""
    return {
        "compare_type": True,
        "compare_server_default": True,
        "include_name": lambda name, kind, _: kind != "table" or not str(name).startswith(_PARTITIONED),
    }


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    config.attributes["connection"] = connection
    return config


def _revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _require_known(connection: Connection) -> None:
    revision = current(connection)
    if revision is not None and revision not in _revisions():
        raise SchemaMismatch(
            f"the database's schema is at {revision}, which this release doesn't know: "
            "use the release that created it"
        )


@contextmanager
def _connect(url: str) -> Iterator[Connection]:
    info = conninfo(url)
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: open_session(info),
        poolclass=NullPool,
    )
    with translate_driver_errors(detailed=True), engine.begin() as connection:
        yield connection


@contextmanager
def _connect_locked(url: str) -> Iterator[Connection]:
    with _connect(url) as connection:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # A migration that waits for its lock would block every query behind it.
        connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        yield connection
