"""The servers that Valence accepts, and their URLs. Never opens a connection."""

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection

from db.errors import ExtensionTooOld, ServerTooOld

OLDEST_SERVER = 16
OLDEST_PGVECTOR = (0, 8, 3)


def conninfo(url: str) -> str:
    """Return the URL in libpq's spelling, from any of the usual spellings.

    Raises ValueError if it isn't a PostgreSQL URL; the message quotes nothing, because the URL may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.split("+")[0] not in ("postgres", "postgresql"):
        raise ValueError("a database's URL starts with postgresql://")
    spelled = f"postgresql://{rest}"
    try:
        conninfo_to_dict(spelled)
    except psycopg.ProgrammingError:
        raise ValueError(
            "libpq can't read this URL: percent-encode special characters in the password (@ is %40), and check "
            "the names of its parameters"
        ) from None
    return spelled


def find_host(url: str) -> str:
    """Return the host of a URL, the folder of a socket if it names one, or nothing."""
    parts = conninfo_to_dict(conninfo(url))
    return str(parts.get("hostaddr") or parts.get("host") or "")


def check_server(connection: Connection) -> None:
    """Raise ServerTooOld if PostgreSQL is too old, ExtensionTooOld if pgvector is missing or too old."""
    number = int(connection.exec_driver_sql("SELECT current_setting('server_version_num')").scalar_one())
    if number // 10_000 < OLDEST_SERVER:
        raise ServerTooOld(
            f"the server is PostgreSQL {number // 10_000}, Valence needs {OLDEST_SERVER} or later: upgrade it"
        )
    version = connection.exec_driver_sql(
        "SELECT coalesce((SELECT extversion FROM pg_extension WHERE extname = 'vector'),"
        " (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'))"
    ).scalar_one()
    oldest = ".".join(map(str, OLDEST_PGVECTOR))
    if version is None:
        raise ExtensionTooOld(f"the server has no pgvector: install pgvector {oldest} or later on it")
    if tuple(int(part) for part in version.split(".")) < OLDEST_PGVECTOR:
        raise ExtensionTooOld(
            f"the database has pgvector {version}, Valence needs {oldest} or later: install it on the server, "
            "then run `ALTER EXTENSION vector UPDATE` in the database"
        )
