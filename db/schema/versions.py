"""The schema's version: up, down, where it is, and whether migrations and tables agree.

Owns how Alembic is called. A change is one transaction under one advisory lock: two at once are safe.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine

from db.core.urls import check_server, conninfo
from db.errors import DatabaseError, SchemaMismatch, Unavailable, translate_driver_errors
from db.schema.tables import Base

_LOCK = 0x56414C_454E_4345
_LOOK_SECONDS = 1.0
_PARTITIONED = ("predictions_", "feedback_", "embeddings_")


@cache
def head() -> str:
    """The revision this release needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise SchemaMismatch("this installation of Valence holds no migrations: install it again")
    return revision


def current(connection: Connection) -> str | None:
    """The revision the database is at; None if it holds no schema."""
    return MigrationContext.configure(connection).get_current_revision()


def read_current(url: str) -> str | None:
    """As `current`, for whoever has no connection."""
    with _connected(url) as connection:
        return current(connection)


def can_upgrade_from(revision: str) -> bool:
    """Whether this release can bring a schema of that revision up to its own."""
    return revision in _revisions()


def is_compatible(found: str | None) -> bool:
    """Whether this release works with that revision: its own, or one of a later release, which leaves it working."""
    return found == head() or (found is not None and found > head())


def wait_until_compatible(url: str, seconds: float) -> str:
    """The revision, once this release works with it, however long the server takes to come.

    Raises:
        SchemaMismatch: it doesn't in so many seconds.
        Unavailable: the server doesn't answer in them.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if (found := read_current(url)) is not None and is_compatible(found):
                return found
            late: DatabaseError = SchemaMismatch(
                f"the database's schema is at {found or 'nothing'}, this release needs {head()}: "
                "run `valence db upgrade`"
            )
        except Unavailable as error:
            late = error
        if time.monotonic() > deadline:
            raise late
        time.sleep(_LOOK_SECONDS)


def upgrade(url: str, revision: str = "head") -> str | None:
    """Brings the schema up to `revision`; returns where it is now. Safe while others do the same."""
    with _locked(url) as connection:
        check_server(connection)
        _known(connection)
        if revision == "head" and current(connection) == head():
            # Whoever may not change the schema may still ask for what is there.
            return head()
        command.upgrade(_config(connection), revision)
        return current(connection)


def downgrade(url: str, revision: str) -> str | None:
    """Takes the schema down to `revision` (`base`: to empty, data and all); returns where it is now."""
    with _locked(url) as connection:
        _known(connection)
        command.downgrade(_config(connection), revision)
        return current(connection)


def find_differences(url: str) -> list[str]:
    """How the tables in the database differ from those in `db.schema.tables`; empty if they agree."""
    with _connected(url) as connection:
        context = MigrationContext.configure(connection, opts=comparison_options())
        return [str(difference) for difference in compare_metadata(context, Base.metadata)]


def comparison_options() -> dict[str, Any]:
    """How Alembic compares: types and defaults too; partitions are data, not schema."""
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


def _known(connection: Connection) -> None:
    found = current(connection)
    if found is not None and found not in _revisions():
        raise SchemaMismatch(
            f"the database's schema is at {found}, which this release doesn't know: "
            "use the release that made it"
        )


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    info = conninfo(url)
    engine = create_engine(
        "postgresql+psycopg://",
        # Nothing is prepared: a transaction pooler may stand in between.
        creator=lambda: psycopg.connect(info, prepare_threshold=None),
        poolclass=NullPool,
    )
    with translate_driver_errors(detailed=True), engine.begin() as connection:
        yield connection


@contextmanager
def _locked(url: str) -> Iterator[Connection]:
    with _connected(url) as connection:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # A migration that can't have its lock at once would make every query behind it wait.
        connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        yield connection
