"""Blocking connections for commands and startup, where no event loop runs. Knows no table."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

from db.core.sessions import BlockingConnection, open_session
from db.core.urls import conninfo
from db.errors import translate_driver_errors


@contextmanager
def connect(
    url: str, *, autocommit: bool = False, connect_seconds: int | None = None
) -> Iterator[BlockingConnection]:
    """Yield a connection that prepares nothing, so that a transaction pooler may be in between.

    Raises any error of the driver as a DatabaseError, with the message of a failed connection.
    """
    with (
        translate_driver_errors(detailed=True),
        open_session(conninfo(url), autocommit=autocommit, connect_timeout=connect_seconds) as connection,
    ):
        yield connection


def fetch_value(connection: BlockingConnection, statement: LiteralString, *parameters: object) -> Any:
    """Return the first column of the first row; None without a row."""
    row = connection.execute(statement, parameters or None).fetchone()
    return None if row is None else row[0]
