"""Databases of one server: a neighbour for what must not share the schema, and whether it answers. Never drops one."""

from contextlib import suppress

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from db.conninfo import conninfo
from db.errors import translated

_PATIENCE_SECONDS = 5


def beside(url: str, suffix: str) -> str:
    """The SQLAlchemy URL of the database that is named like that of `url` with `suffix`; it may not exist yet."""
    here = make_url(conninfo(url))
    there = here.set(drivername="postgresql+psycopg", database=f"{here.database}{suffix}")
    return there.render_as_string(hide_password=False)


def ensure_beside(url: str, suffix: str) -> str:
    """Makes that database unless it exists; returns its URL.

    Raises:
        Unavailable: the server can't be reached.
        Rejected: the role may not make a database.
    """
    there = beside(url, suffix)
    name = make_url(there).database or ""
    with (
        translated(says_why=True),
        psycopg.connect(conninfo(url), autocommit=True, prepare_threshold=None) as connection,
    ):
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            # Somebody else may just have made it.
            with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return there


def require(url: str) -> None:
    """Connects once.

    Raises:
        Unavailable: the server can't be reached, or has no such database.
    """
    with translated(says_why=True), psycopg.connect(conninfo(url), connect_timeout=_PATIENCE_SECONDS):
        pass
