"""Keyset pages, and their cursors: opaque to clients, each names the last row of its page. Never reads a table."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from uuid import UUID

from db.errors import Rejected

_NO_CURSOR: Final = "the cursor isn't one that an earlier page gave: leave it out to start anew"

Item = TypeVar("Item")


# Without slots: an alias such as `Page[User]` notes itself on what it makes, and must be able to fail.
@dataclass(frozen=True, kw_only=True)
class Page(Generic[Item]):
    """Some values, newest first, and the cursor of the page after them."""

    items: tuple[Item, ...]
    next_cursor: str | None


def cut_page(values: Sequence[Item], limit: int, cursor_of: Callable[[Item], str]) -> Page[Item]:
    """Return a page of `limit` values; one value more shows that there is another page."""
    items = tuple(values[:limit])
    return Page(items=items, next_cursor=cursor_of(items[-1]) if len(values) > limit else None)


def encode_row_id(row_id: int) -> str:
    """Return the cursor that continues after the row with this id."""
    return str(row_id)


def decode_row_id(cursor: str) -> int:
    """Return the id of the row that the page before ended with. Raises Rejected if no page gave this cursor."""
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise Rejected(_NO_CURSOR)
    return int(cursor)


def encode_uuid(row_id: UUID) -> str:
    """Return the cursor that continues after the row with this UUID."""
    return base64.urlsafe_b64encode(row_id.bytes).decode().rstrip("=")


def decode_uuid(cursor: str) -> UUID:
    """Return the UUID of the row that the page before ended with.

    Raises Rejected if no page gave this cursor.
    """
    try:
        return UUID(bytes=base64.b64decode(f"{cursor}==", altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise Rejected(_NO_CURSOR) from None
