"""The errors of the db layer, as one tree.

DatabaseError
├── Unavailable            it can't be reached, or can't store or answer now: try again
│   └── ClockBeyondPartitions
├── Unsuitable             it can be reached, but Valence can't work with it
│   ├── ServerTooOld
│   ├── ExtensionTooOld
│   ├── SchemaMismatch
│   ├── ForeignInstallation
│   └── ForeignTextKeys
├── Unreadable             a stored value can't be decrypted
├── NotFound               no such row, or another caller's
├── Duplicate              a row with that name exists
├── Contested              another change of the same thing is in progress, or came first
├── Conflict               the row's state forbids it
├── Contradictory          the values contradict each other, or what is stored
├── Rejected               the database refuses the value
│   └── NotPermitted       the database's role lacks the right
├── EmbeddedServerError    the embedded server can't be set up, started or stopped
│   └── AlreadyOwned
└── BackupError            a backup can't be taken or restored
    ├── BackupFailed       a tool of PostgreSQL failed
    ├── BackupUnwritable   the target exists already, or its folder doesn't
    ├── BackupDamaged
    ├── BackupTooNew
    └── NotEmpty           the target of the restore holds data

`translate_driver_errors` wraps the exceptions of psycopg and SQLAlchemy once; none of them leaves this package.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import psycopg_pool
from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as SqlAlchemyTimeout


class DatabaseError(Exception):
    """The database can't do it; the message says why and what to do."""


class Unavailable(DatabaseError):
    """The database can't be reached, or can't store or answer now."""


class ClockBeyondPartitions(Unavailable):
    """No partition exists yet for the time that the clock reads."""


class Unsuitable(DatabaseError):
    """The database can be reached, but Valence can't work with it."""


class ServerTooOld(Unsuitable):
    """PostgreSQL is older than Valence needs."""


class ExtensionTooOld(Unsuitable):
    """pgvector is missing or older than Valence needs."""


class SchemaMismatch(Unsuitable):
    """The schema isn't the one this release of Valence works with."""


class ForeignInstallation(Unsuitable):
    """The database was filled under another installation key."""


class ForeignTextKeys(Unsuitable):
    """Values are encrypted under a text key that is missing or differs."""


class Unreadable(DatabaseError):
    """A stored value can't be decrypted: its key is missing, or it was changed."""


class NotFound(DatabaseError):
    """No such row, or it belongs to another caller."""


class Duplicate(DatabaseError):
    """A row with that name exists already."""


class Contested(DatabaseError):
    """Another change of the same thing is in progress, or came first."""


class Conflict(DatabaseError):
    """The row's present state forbids the change."""


class Contradictory(DatabaseError):
    """The values contradict each other, or what is stored."""


class Rejected(DatabaseError):
    """The database refuses the value."""


class NotPermitted(Rejected):
    """The role that Valence connects as lacks the right."""


class EmbeddedServerError(DatabaseError):
    """The embedded server can't be set up, started or stopped."""


class AlreadyOwned(EmbeddedServerError):
    """Another process runs the embedded server of this home."""


class BackupError(DatabaseError):
    """A backup can't be taken or restored."""


class BackupFailed(BackupError):
    """A tool of PostgreSQL failed."""


class BackupUnwritable(BackupError):
    """The backup's file exists already, or its folder doesn't."""


class BackupDamaged(BackupError):
    """A backup is incomplete, or a file in it differs from its digest."""


class BackupTooNew(BackupError):
    """A backup has the format of a later release."""


class NotEmpty(BackupError):
    """The target of the restore already holds data."""


# The same statement may succeed later.
_TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InternalError,
    psycopg_pool.PoolTimeout,
    psycopg_pool.PoolClosed,
    psycopg_pool.TooManyRequests,
    pg.ReadOnlySqlTransaction,
)


def translate(error: Exception, *, detailed: bool = False) -> DatabaseError:
    """Return the db error for an exception of a driver; it carries names and codes, never values of rows.

    `detailed` adds the message of a failed connection, which names host and role: for operators, not for clients.
    """
    if isinstance(error, DatabaseError):
        return error
    if isinstance(error, SqlAlchemyTimeout):
        return Unavailable("no connection to the database became free in time")
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, Exception) and isinstance(original, _TRANSIENT):
        code = getattr(original, "sqlstate", None)
        if isinstance(original, pg.ReadOnlySqlTransaction):
            return Unavailable(
                f"the database takes no writes ({code}): it is a replica, or the role is a reader's"
            )
        if detailed and code is None:
            return Unavailable(f"the database can't be reached: {' '.join(str(original).split())}")
        return Unavailable(
            f"the database is unavailable ({type(original).__name__}, {code or 'no connection'})"
        )
    if isinstance(original, pg.CheckViolation) and original.diag.constraint_name is None:
        return Unavailable(f"the table {original.diag.table_name} has no partition for the row yet")
    if isinstance(original, pg.InsufficientPrivilege):
        return NotPermitted(
            f"the database's role may not do this ({original.sqlstate}): migrations and `valence db roles` need its "
            "owner, everything else the grants that `valence db roles` gives"
        )
    if isinstance(original, psycopg.Error):
        name = original.diag.constraint_name or original.diag.column_name or original.diag.table_name
        where = f" at {name}" if name else ""
        return Rejected(
            f"the database refused the value{where} ({type(original).__name__}, {original.sqlstate})"
        )
    if isinstance(error, InterfaceError):
        return Unavailable("the connection to the database was lost")
    return DatabaseError(f"the database failed ({type(error).__name__})")


@contextmanager
def translate_driver_errors(*, detailed: bool = False) -> Iterator[None]:
    """Raise the exceptions of psycopg, its pool and SQLAlchemy as errors of this tree; see `translate`."""
    try:
        yield
    except (psycopg.Error, DBAPIError, SqlAlchemyTimeout) as error:
        raise translate(error, detailed=detailed) from error
