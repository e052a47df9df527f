"""The body of a request: its media type, its compression and its size.

Reads bytes only; the schemas say what they must hold.
"""

import zlib
from collections.abc import Collection
from email.message import Message as Headers
from typing import Final

from starlette.types import Scope

from serving.api.dependencies import get_header, get_headers
from serving.api.errors import ClientDisconnected, UnsupportedMedia
from serving.api.uploads import Upload
from serving.errors import Invalid, TooLarge

MAX_BODY: Final = 2 * 1024 * 1024
# Of routes whose clients send many long texts at once.
LARGE_BODY: Final = 16 * 1024 * 1024
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

# ASCII is a part of UTF-8.
_CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_GZIP: Final = frozenset({"gzip", "x-gzip"})
# Python refuses to read a number of thousands of digits.
_LENGTH_DIGITS: Final = 20
_GZIP_FORMAT: Final = 16 + zlib.MAX_WBITS


class _Inflater:
    """Decompresses one gzip member, and never to more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._stream = zlib.decompressobj(_GZIP_FORMAT)
        self._limit = limit
        self._left = limit

    def inflate(self, chunk: bytes) -> bytes:
        """Return what a chunk holds.

        Raises:
            Invalid: it isn't gzip.
            TooLarge: it holds more than the limit.
        """
        try:
            # One byte more tells a body that fills the limit from a larger one.
            content = self._stream.decompress(chunk, self._left + 1)
        except zlib.error:
            raise Invalid("the body isn't gzip, as its Content-Encoding says") from None
        if len(content) > self._left:
            raise _too_large(self._limit)
        if self._stream.unused_data:
            raise Invalid("the body goes on after the end of its gzip data: send one gzip member")
        self._left -= len(content)
        return content

    def finish(self) -> None:
        """Raise Invalid unless the data are complete."""
        if not self._stream.eof:
            raise Invalid("the body ends before its gzip data do")


async def read_body(
    scope: Scope, upload: Upload, media_type: str, limit: int = MAX_BODY, *, others: Collection[str] = ()
) -> bytes:
    """Return the whole body, decompressed: at most `limit` bytes.

    Raises:
        UnsupportedMedia: it isn't `media_type` or one of `others`, where "" stands for none, or it is compressed by
            something else than gzip.
        TooLarge: it is over the limit; the rest isn't kept in memory.
        TooSlow: it doesn't come in time.
        Overloaded: it is slow or large, and so are too many others of its key.
        Invalid: it can't be decompressed.
        ClientDisconnected: the client closed the connection before the end.
    """
    content_type = get_header(scope, b"content-type") or ""
    if content_type not in others and not _is_of_type(content_type, media_type):
        raise UnsupportedMedia(f"send the body as {media_type} in UTF-8", headers={"Accept": media_type})
    inflater = _find_inflater(", ".join(get_headers(scope, b"content-encoding")), limit)
    length = get_header(scope, b"content-length")
    if length is not None and length.isdecimal() and len(length) <= _LENGTH_DIGITS and int(length) > limit:
        raise TooLarge(f"the body has {int(length):,} bytes: send at most {limit:,}")
    chunks: list[bytes] = []
    size = kept = 0
    while True:
        message = await upload.receive(size)
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(inflater.inflate(chunk) if inflater is not None and chunk else chunk)
        kept += len(chunks[-1])
        if kept > MAX_BODY:
            upload.grow_large()
        if not message.get("more_body", False):
            if inflater is not None and size:
                inflater.finish()
            upload.finish()
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def announces_body(scope: Scope) -> bool:
    """Return whether the headers say that a body follows."""
    length = get_header(scope, b"content-length")
    return get_header(scope, b"transfer-encoding") is not None or length not in (None, "0")


def _is_of_type(content_type: str, media_type: str) -> bool:
    """Return whether the header names this type, in UTF-8; its other parameters mean nothing (RFC 8259, 11)."""
    if content_type == media_type:
        return True
    headers = Headers()
    headers["content-type"] = content_type
    charset = headers.get_content_charset()
    return headers.get_content_type() == media_type and (charset is None or charset in _CHARSETS)


def _find_inflater(encoding: str, limit: int) -> _Inflater | None:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _GZIP:
        raise UnsupportedMedia(
            "send the body uncompressed, or compressed by gzip", headers={"Accept-Encoding": "gzip"}
        )
    return _Inflater(limit)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than {limit:,} bytes: send less at once")
