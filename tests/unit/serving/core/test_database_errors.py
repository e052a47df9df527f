"""The translation of db errors: it names every class of the tree, and calls nothing unknown "unavailable"."""

import ast
import inspect
from collections.abc import Iterator

import pytest

from db import errors as db
from serving import errors
from serving.core.database_errors import TRANSLATIONS, translate_database_errors


def tree(root: type[db.DatabaseError]) -> Iterator[type[db.DatabaseError]]:
    for child in root.__subclasses__():
        if child.__module__ == db.__name__:
            yield child
            yield from tree(child)


def test_every_class_of_the_tree_is_translated_by_name() -> None:
    assert set(TRANSLATIONS) == set(tree(db.DatabaseError))
    classes = [node for node in ast.parse(inspect.getsource(db)).body if isinstance(node, ast.ClassDef)]
    assert {each.__name__ for each in TRANSLATIONS} == {each.name for each in classes} - {"DatabaseError"}


@pytest.mark.parametrize(("raised", "expected"), TRANSLATIONS.items())
def test_each_is_raised_as_its_translation_with_its_message(
    raised: type[db.DatabaseError], expected: type[errors.ServingError]
) -> None:
    with pytest.raises(errors.ServingError, match="the reason") as caught, translate_database_errors():
        raise raised("the reason")
    assert type(caught.value) is expected
    assert isinstance(caught.value.__cause__, raised)
    if isinstance(caught.value, errors.StoreUnavailable):
        assert caught.value.retry_after == 2


def test_an_unknown_database_error_is_internal_and_not_unavailable() -> None:
    class Unheard(db.DatabaseError):
        """An error that the table doesn't map."""

    for unknown in (db.DatabaseError("the database failed (Oddity)"), Unheard("odd")):
        with pytest.raises(errors.InternalError), translate_database_errors():
            raise unknown


def test_what_db_did_not_raise_passes_untouched() -> None:
    with pytest.raises(ZeroDivisionError), translate_database_errors():
        raise ZeroDivisionError
