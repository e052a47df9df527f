"""Values and the rows that hold them: a dataclass whose fields are named like a table's columns."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def columns_of(table: type[Any], value: type[Any]) -> tuple[Any, ...]:
    """Return the columns of a table that have a field in the dataclass, in the order of the fields."""
    return tuple(getattr(table, field.name) for field in fields(value) if hasattr(table, field.name))


def values_of(value: Any) -> dict[str, Any]:
    """Return a dataclass's values by column, with each mapping as the dict that JSON needs."""
    values = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: dict(each) if isinstance(each, Mapping) else each for name, each in values.items()}
