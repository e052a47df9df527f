"""Databases of one server: siblings and checks. Never drops one."""

from contextlib import suppress

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from db.core.blocking import connect, fetch_value
from db.core.sessions import BlockingConnection
from db.core.urls import conninfo
from db.errors import NotPermitted, Unsuitable

_CONNECT_SECONDS = 5


def sibling_url(url: str, suffix: str) -> str:
    """Return the SQLAlchemy URL of the database named like that of `url` plus `suffix`; it may not exist yet."""
    own = make_url(conninfo(url))
    sibling = own.set(drivername="postgresql+psycopg", database=f"{own.database}{suffix}")
    return sibling.render_as_string(hide_password=False)


def ensure_sibling(url: str, suffix: str) -> str:
    """Create that database unless it exists, and return its URL.

    Raises Unavailable if the server can't be reached, NotPermitted if the role may not create databases.
    """
    sibling = sibling_url(url, suffix)
    name = make_url(sibling).database or ""
    with connect(url, autocommit=True) as connection:
        if not fetch_value(connection, "SELECT 1 FROM pg_database WHERE datname = %s", name):
            # Another process may have created it meanwhile.
            with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                _create(connection, name)
    return sibling


def _create(connection: BlockingConnection, name: str) -> None:
    try:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise NotPermitted(
            f"the database's role may not create the database {name}: have it created for that role, or name "
            "MLflow's database or server by MLFLOW_TRACKING_URI"
        ) from error


def require_reachable(url: str) -> None:
    """Raise Unavailable if the server can't be reached, or has no such database."""
    with connect(url, connect_seconds=_CONNECT_SECONDS):
        pass


def require_own_session(url: str, purpose: str) -> None:
    """Raise unless a connection has its own session; `purpose`, which needs one, goes into the message.

    Raises:
        Unsuitable: a transaction pooler is in between, and other clients would share the session's state.
        Unavailable: the server can't be reached, or has no such database.
    """
    with connect(url, connect_seconds=_CONNECT_SECONDS) as connection:
        if fetch_value(connection, "SELECT pg_backend_pid()") != connection.info.backend_pid:
            raise Unsuitable(
                f"a pooler is in front of the database, and {purpose} needs its own session: set DATABASE_DIRECT_URL "
                "to a URL past the pooler"
            )
