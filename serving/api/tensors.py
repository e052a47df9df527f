"""Tensors of the Open Inference Protocol: strings in lists of any depth, in binary or in base64, and outputs in binary.

Knows bytes and lists only; the schemas say which of them a request holds.
"""

import base64
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from serving.errors import Invalid

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
OCTETS: Final = "application/octet-stream"

_LENGTH: Final = struct.Struct("<I")
# Python refuses to read a number of thousands of digits.
_MOST_DIGITS: Final = 20
_NUMBERS: Final = {"FP32": "<f4", "BOOL": "?"}


def split_body(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON and the tensors after it, by the header that says how long the JSON is.

    Raises:
        Invalid: the header is no length, or the body is shorter.
    """
    if length is None:
        return body, b""
    if not length.isdecimal() or len(length) > _MOST_DIGITS or not 0 < int(length) <= len(body):
        raise Invalid(f"{HEADER_LENGTH} must be the length of the JSON: from 1 to {len(body)} bytes here")
    return body[: int(length)], body[int(length) :]


def read_strings(tensor: bytes) -> list[str]:
    """Return the elements of a BYTES tensor: each is its length in 4 bytes, little-endian, and then UTF-8.

    Raises:
        ValueError: the bytes aren't such elements.
    """
    strings: list[str] = []
    start = 0
    while start < len(tensor):
        end = start + _LENGTH.size
        if end <= len(tensor):
            start, end = end, end + _LENGTH.unpack_from(tensor, start)[0]
        if end > len(tensor):
            raise ValueError(f"the binary tensor ends before its element {len(strings)} does")
        strings.append(_decode(tensor[start:end], len(strings)))
        start = end
    return strings


def decode_base64(texts: Sequence[Any]) -> list[str]:
    """Return the texts that are here in base64.

    Raises:
        ValueError: one of them isn't.
    """
    decoded = []
    for index, text in enumerate(texts):
        try:
            element = base64.b64decode(text, validate=True)
        except (TypeError, ValueError):
            raise ValueError(f"element {index} isn't in base64, as its content_type says") from None
        decoded.append(_decode(element, index))
    return decoded


def _decode(element: bytes, index: int) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise ValueError(f"element {index} isn't UTF-8") from None


def flatten(data: Any) -> Any:
    """Return a list of any depth as a flat one, in row-major order; anything else as it is."""
    return list(_walk(data)) if isinstance(data, list) else data


def _walk(data: list[Any]) -> Iterator[Any]:
    # Without recursion: JSON may be deeper than Python's stack.
    pending = [iter(data)]
    while pending:
        for each in pending[-1]:
            if isinstance(each, list):
                pending.append(iter(each))
                break
            yield each
        else:
            pending.pop()


def pack(datatype: str, values: Any) -> bytes:
    """Return an output's values as the bytes of a tensor of this datatype."""
    return _pack_strings(map(str, values)) if datatype == "BYTES" else _pack_numbers(datatype, values)


def _pack_strings(strings: Iterable[str]) -> bytes:
    return b"".join(_LENGTH.pack(len(each)) + each for each in map(str.encode, strings))


def _pack_numbers(datatype: str, values: Any) -> bytes:
    return np.asarray(values, _NUMBERS[datatype]).tobytes()
