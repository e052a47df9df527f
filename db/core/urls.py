"""Which servers Valence takes, and how their URLs may be spelled.

Never holds a connection.
"""

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection

from db.errors import ExtensionTooOld, ServerTooOld

OLDEST_SERVER = 16
OLDEST_PGVECTOR = (0, 8, 3)


def conninfo(url: str) -> str:
    """The URL in libpq's spelling, from any of the spellings in use.

    Raises:
        ValueError: it names no PostgreSQL; the message holds nothing of the URL, which may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.split("+")[0] not in ("postgres", "postgresql"):
        raise ValueError("a database's URL starts with postgresql://")
    spelled = f"postgresql://{rest}"
    try:
        conninfo_to_dict(spelled)
    except psycopg.ProgrammingError:
        raise ValueError(
            "libpq can't read this URL: write what is special in its password as %40 and the like, and look at "
            "the names of its parameters"
        ) from None
    return spelled


def check_server(connection: Connection) -> None:
    """Refuses, by name, a server or a pgvector that is too old."""
    number = int(connection.exec_driver_sql("SELECT current_setting('server_version_num')").scalar_one())
    if number // 10_000 < OLDEST_SERVER:
        raise ServerTooOld(
            f"the server is PostgreSQL {number // 10_000}, Valence needs {OLDEST_SERVER} or later: upgrade it"
        )
    found = connection.exec_driver_sql(
        "SELECT coalesce((SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
        " (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'))"
    ).scalar_one()
    wanted = ".".join(map(str, OLDEST_PGVECTOR))
    if found is None:
        raise ExtensionTooOld(f"the server has no pgvector: install pgvector {wanted} or later on it")
    if tuple(int(part) for part in found.split(".")) < OLDEST_PGVECTOR:
        raise ExtensionTooOld(
            f"the database has pgvector {found}, Valence needs {wanted} or later: install it on the server, "
            "then run `ALTER EXTENSION vector UPDATE` in the database"
        )
