"""The border between the db layer's errors and this layer's."""

from collections.abc import Iterator
from contextlib import contextmanager

from db import errors as db_errors
from serving.errors import Conflict, Invalid, NotFound, ServingError, StoreUnavailable, Unreadable


@contextmanager
def translate_database_errors() -> Iterator[None]:
    """Turns the db layer's errors into this layer's."""
    try:
        yield
    except db_errors.DatabaseError as error:
        raise _translate(error) from error


def _translate(error: db_errors.DatabaseError) -> ServingError:
    match error:
        case db_errors.NotFound():
            return NotFound(str(error))
        case db_errors.Duplicate() | db_errors.Conflict():
            return Conflict(str(error))
        case db_errors.Unreadable():
            return Unreadable(str(error))
        case db_errors.NotPermitted():
            return StoreUnavailable(str(error), retry_after=2)
        case db_errors.Rejected():
            return Invalid(str(error))
        case _:
            return StoreUnavailable(f"the database can't be used now: {error}", retry_after=2)
