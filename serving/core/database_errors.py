"""The border between the db layer's errors and this layer's: one table, which names every class of `db.errors`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from db import errors as db
from serving.errors import (
    Conflict,
    InternalError,
    Invalid,
    NotFound,
    ServingError,
    StoreUnavailable,
    Unreadable,
)

TRANSLATIONS: Final[Mapping[type[db.DatabaseError], type[ServingError]]] = {
    db.Unavailable: StoreUnavailable,
    db.ClockBeyondPartitions: StoreUnavailable,
    db.Unsuitable: StoreUnavailable,
    db.ServerTooOld: StoreUnavailable,
    db.ExtensionTooOld: StoreUnavailable,
    db.SchemaMismatch: StoreUnavailable,
    db.ForeignInstallation: StoreUnavailable,
    db.ForeignTextKeys: StoreUnavailable,
    db.NotPermitted: StoreUnavailable,
    db.Unreadable: Unreadable,
    db.NotFound: NotFound,
    db.Duplicate: Conflict,
    db.Contested: Conflict,
    db.Conflict: Conflict,
    db.Contradictory: Invalid,
    db.Rejected: Invalid,
    # Raised at a command or at a start, never for a request.
    db.EmbeddedServerError: InternalError,
    db.AlreadyOwned: InternalError,
    db.BackupError: InternalError,
    db.BackupFailed: InternalError,
    db.BackupUnwritable: InternalError,
    db.BackupDamaged: InternalError,
    db.BackupTooNew: InternalError,
    db.NotEmpty: InternalError,
}
_RETRY_SECONDS: Final = 2


@contextmanager
def translate_database_errors() -> Iterator[None]:
    """Raise the errors of the db layer as those of this layer; one that the table doesn't name is internal."""
    try:
        yield
    except db.DatabaseError as error:
        raise _translate(error) from error


def _translate(error: db.DatabaseError) -> ServingError:
    translation = TRANSLATIONS.get(type(error), InternalError)
    if not issubclass(translation, StoreUnavailable):
        return translation(str(error))
    if isinstance(error, db.NotPermitted):
        return translation(str(error), retry_after=_RETRY_SECONDS)
    return translation("the database can't be used now", retry_after=_RETRY_SECONDS, reason=str(error))
