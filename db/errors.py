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
├── NotFound               no such row, or not the caller's
├── Duplicate              a row with that name exists
├── Contested              another change of the same thing is under way, or came first
├── Conflict               the row's state forbids it
├── Rejected               the database refuses the value
│   └── NotPermitted       the database's role may not do that
├── EmbeddedServerError    the embedded server can't be set up, started or stopped
│   └── AlreadyOwned
└── BackupError            a backup can't be made or brought back
    ├── BackupFailed       a tool of PostgreSQL failed
    ├── BackupUnwritable   where it should lie something lies already, or no folder is
    ├── BackupDamaged
    ├── BackupTooNew
    └── NotEmpty           where it should be brought back there are data

`translated` wraps psycopg's and SQLAlchemy's exceptions once; nothing foreign leaves this package.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import psycopg_pool
from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as SqlAlchemyTimeout


class DatabaseError(Exception):
    """The database can't do what was asked; the message says why and what to do."""


class Unavailable(DatabaseError):
    """The database can't be reached, or can't store or answer now."""


class ClockBeyondPartitions(Unavailable):
    """The clock reads a time for which no partition exists yet."""


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
    """Values are stored under a text key that isn't given, or that isn't the one given under its id."""


class Unreadable(DatabaseError):
    """A stored value can't be decrypted: its key isn't given, or it isn't what was stored there."""


class NotFound(DatabaseError):
    """No such row, or not the caller's."""


class Duplicate(DatabaseError):
    """A row with that name exists already."""


class Contested(DatabaseError):
    """Another change of the same thing is under way, or came first."""


class Conflict(DatabaseError):
    """The row's present state forbids what was asked."""


class Rejected(DatabaseError):
    """The database refuses the value."""


class NotPermitted(Rejected):
    """The role that Valence connects as may not do that."""


class EmbeddedServerError(DatabaseError):
    """The embedded server can't be set up, started or stopped."""


class AlreadyOwned(EmbeddedServerError):
    """Another process runs the embedded server of this home."""


class BackupError(DatabaseError):
    """A backup can't be made or brought back."""


class BackupFailed(BackupError):
    """A tool of PostgreSQL failed."""


class BackupUnwritable(BackupError):
    """Where the backup should lie something lies already, or no folder is."""


class BackupDamaged(BackupError):
    """A backup isn't whole, or a file of it differs from its digest."""


class BackupTooNew(BackupError):
    """A backup was made by a release that knows more than this one."""


class NotEmpty(BackupError):
    """Where a backup should be brought back there are data."""


# Besides psycopg's OperationalError: states in which the same statement may succeed later.
_TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InternalError,
    psycopg_pool.PoolTimeout,
    psycopg_pool.PoolClosed,
    psycopg_pool.TooManyRequests,
    pg.ReadOnlySqlTransaction,
)


def translate(error: Exception, *, detailed: bool = False) -> DatabaseError:
    """The db error that stands for a foreign one. Never carries a row's values, only names and codes.

    `says_why`: with the words of a connection that failed, which name host and role: for operators, not for clients.
    """
    if isinstance(error, DatabaseError):
        return error
    if isinstance(error, SqlAlchemyTimeout):
        return Unavailable("no connection to the database came free in time")
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
        place = original.diag.constraint_name or original.diag.column_name or original.diag.table_name
        where = f" at {place}" if place else ""
        return Rejected(
            f"the database refused the value{where} ({type(original).__name__}, {original.sqlstate})"
        )
    if isinstance(error, InterfaceError):
        return Unavailable("the connection to the database was lost")
    return DatabaseError(f"the database failed ({type(error).__name__})")


@contextmanager
def translate_driver_errors(*, detailed: bool = False) -> Iterator[None]:
    """Turns what psycopg, its pool and SQLAlchemy raise into this tree; `says_why` as `translate` has it."""
    try:
        yield
    except (psycopg.Error, DBAPIError, SqlAlchemyTimeout) as error:
        raise translate(error, detailed=detailed) from error
