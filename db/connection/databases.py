"""Databases of one server: a neighbour for what must not share the schema, and whether it answers. Never drops one."""

from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from db.core.urls import conninfo
from db.errors import NotPermitted, Unsuitable, translate_driver_errors

_PATIENCE_SECONDS = 5


def sibling_url(url: str, suffix: str) -> str:
    """The SQLAlchemy URL of the database that is named like that of `url` with `suffix`; it may not exist yet."""
    here = make_url(conninfo(url))
    there = here.set(drivername="postgresql+psycopg", database=f"{here.database}{suffix}")
    return there.render_as_string(hide_password=False)


def ensure_sibling(url: str, suffix: str) -> str:
    """Makes that database unless it exists; returns its URL.

    Raises:
        Unavailable: the server can't be reached.
        NotPermitted: the role may not make a database.
    """
    there = sibling_url(url, suffix)
    name = make_url(there).database or ""
    with (
        translate_driver_errors(detailed=True),
        psycopg.connect(conninfo(url), autocommit=True, prepare_threshold=None) as connection,
    ):
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            # Somebody else may just have made it.
            with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                _make(connection, name)
    return there


def _make(connection: psycopg.Connection[Any], name: str) -> None:
    try:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise NotPermitted(
            f"the database's role may not make the database {name}: have it made for that role, or name MLflow's "
            "database or server by MLFLOW_TRACKING_URI"
        ) from error


def require_reachable(url: str) -> None:
    """Connects once.

    Raises:
        Unavailable: the server can't be reached, or has no such database.
    """
    with (
        translate_driver_errors(detailed=True),
        psycopg.connect(conninfo(url), connect_timeout=_PATIENCE_SECONDS),
    ):
        pass


def require_own_session(url: str, what: str) -> None:
    """Connects once, for `what`, that sets or prepares things for its session.

    Raises:
        Unsuitable: a pooler stands in between: what is left in a session is met by others.
        Unavailable: as above.
    """
    with (
        translate_driver_errors(detailed=True),
        psycopg.connect(
            conninfo(url), prepare_threshold=None, connect_timeout=_PATIENCE_SECONDS
        ) as connection,
    ):
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        if row is None or row[0] != connection.info.backend_pid:
            raise Unsuitable(
                f"a pooler stands before the database, and {what} needs sessions of its own: name the way past the "
                "pooler by DATABASE_DIRECT_URL"
            )
