"""Cursors of keyset pages, opaque to clients: each names the last row of its page. Never reads a table."""

import base64
import binascii
from typing import Final
from uuid import UUID

from db.errors import Rejected

_NO_CURSOR: Final = "the cursor isn't one that an earlier page gave: leave it out to start anew"


def encode_row_id(row_id: int) -> str:
    """Return the cursor that continues after the row with this id."""
    return str(row_id)


def decode_row_id(cursor: str) -> int:
    """Return the id of the row that the page before ended with.

    Raises:
        Rejected: no page gave this cursor.
    """
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise Rejected(_NO_CURSOR)
    return int(cursor)


def encode_uuid(row_id: UUID) -> str:
    """Return the cursor that continues after the row with this UUID."""
    return base64.urlsafe_b64encode(row_id.bytes).decode().rstrip("=")


def decode_uuid(cursor: str) -> UUID:
    """Return the UUID of the row that the page before ended with.

    Raises:
        Rejected: no page gave this cursor.
    """
    try:
        return UUID(bytes=base64.b64decode(f"{cursor}==", altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise Rejected(_NO_CURSOR) from None
