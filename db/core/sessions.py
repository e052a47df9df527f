"""The formats in which a session reads and writes values, whatever the database's, the role's or the environment's are.

Opens blocking connections. Knows no table.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

BlockingConnection: TypeAlias = psycopg.Connection[TupleRow]

# A transaction pooler keeps these for each of its clients.
PORTABLE: Final[Mapping[str, str]] = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "standard_conforming_strings": "on",
}
# These stay with the server's session.
FORMATS: Final[Mapping[str, str]] = {
    **PORTABLE,
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "default_transaction_isolation": "read committed",
}


def set_parameters(parameters: Mapping[str, str]) -> sql.Composed:
    """Return the statement that sets a session's parameters."""
    values = [sql.SQL("set_config({}, {}, false)").format(*pair) for pair in parameters.items()]
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(values))


def open_session(conninfo: str, *, autocommit: bool = False, **parameters: Any) -> BlockingConnection:
    """Return a blocking connection that prepares nothing, so that a transaction pooler may be in between."""
    connection = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, **parameters)
    try:
        connection.execute(set_parameters(PORTABLE))
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection
