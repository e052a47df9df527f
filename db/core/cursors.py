"""Opaque cursors of keyset pages. Never reads a table."""

from db.errors import Rejected


def encode_row_id(row_id: int) -> str:
    """Return the cursor that continues after the row."""
    return str(row_id)


def decode_row_id(cursor: str) -> int:
    """Return the id of the row that the page before ended with.

    Raises:
        Rejected: no page gave this cursor.
    """
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise Rejected("the cursor isn't one that an earlier page gave: leave it out to start anew")
    return int(cursor)
