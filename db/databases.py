"""Databases of one server: a neighbour for what must not share the schema. Never drops one."""

from contextlib import suppress

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from db.conninfo import conninfo
from db.errors import translated


def beside(url: str, suffix: str) -> str:
    """The SQLAlchemy URL of the database named like that of `url` with `suffix`; made unless it exists.

    Raises:
        Unavailable: the server can't be reached.
        Rejected: the role may not make a database.
    """
    here = make_url(conninfo(url))
    name = f"{here.database}{suffix}"
    with translated(), psycopg.connect(conninfo(url), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            # Somebody else may just have made it.
            with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    there = here.set(drivername="postgresql+psycopg", database=name)
    return there.render_as_string(hide_password=False)
