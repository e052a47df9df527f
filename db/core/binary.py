"""PostgreSQL's binary arrays, built column by column without psycopg's per-value dispatch.

Owns bytes and layouts; never knows tables or statements.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final, TypeAlias
from uuid import UUID

import numpy as np
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

_UUID: Final = 2950
_TEXT: Final = 25
_BYTEA: Final = 17
_REAL: Final = 700
_BOOL: Final = 16
_SMALLINT: Final = 21
_INTEGER: Final = 23
_NULL: Final = b"\xff\xff\xff\xff"
_UUID_LENGTH: Final = b"\x00\x00\x00\x10"
_EMPTY: Final = struct.Struct(">iiI")
_HEADER: Final = struct.Struct(">iiIii")
_LENGTH: Final = struct.Struct(">I").pack


class BinaryParameter:
    """A parameter already in PostgreSQL's binary format; the statement's cast names its type."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _BinaryParameterDumper(Dumper):
    format = Format.BINARY
    oid = 0

    def dump(self, obj: BinaryParameter) -> Buffer:
        return obj.data


psycopg.adapters.register_dumper(BinaryParameter, _BinaryParameterDumper)


def encode_uuids(values: Sequence[UUID | None]) -> BinaryParameter:
    """Return a uuid[]."""
    body = b"".join([_NULL if value is None else _UUID_LENGTH + value.bytes for value in values])
    return _array(_UUID, len(values), body, nulls=True)


def encode_texts(values: Sequence[str | None]) -> BinaryParameter:
    """Return a text[]."""
    return _variable(_TEXT, [None if value is None else value.encode() for value in values])


def encode_blobs(values: Sequence[bytes | None]) -> BinaryParameter:
    """Return a bytea[]."""
    return _variable(_BYTEA, values)


def encode_reals(values: Sequence[float]) -> BinaryParameter:
    """Return a real[]."""
    return _fixed(_REAL, ">f4", values)


def encode_booleans(values: Sequence[bool]) -> BinaryParameter:
    """Return a boolean[]."""
    return _fixed(_BOOL, "?", values)


def encode_smallints(values: Sequence[int]) -> BinaryParameter:
    """Return a smallint[]."""
    return _fixed(_SMALLINT, ">i2", values)


def encode_integers(values: Sequence[int]) -> BinaryParameter:
    """Return an integer[]."""
    return _fixed(_INTEGER, ">i4", values)


def encode_halfvecs(values: Sequence[bytes], *, dimensions: int, oid: int) -> BinaryParameter:
    """Return a halfvec[] of vectors of little-endian float16; `oid` is the type's number in this database.

    Raises ValueError if a vector has another number of dimensions.
    """
    size = 2 * dimensions
    if any(len(value) != size for value in values):
        raise ValueError(f"a vector doesn't have {dimensions} dimensions of float16")
    rows = np.empty(
        len(values),
        [("length", ">u4"), ("dimensions", ">u2"), ("unused", ">u2"), ("vector", ">u2", (dimensions,))],
    )
    rows["length"] = 4 + size
    rows["dimensions"] = dimensions
    rows["unused"] = 0
    rows["vector"] = np.frombuffer(b"".join(values), "<u2").reshape(-1, dimensions)
    return _array(oid, len(values), rows.tobytes())


def encode_halfvec(vector: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> BinaryParameter:
    """Return one halfvec, rounded to float16."""
    return BinaryParameter(struct.pack(">HH", len(vector), 0) + vector.astype(">f2").tobytes())


def decode_vectors(values: Sequence[bytes], *, dimensions: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Return float32 [n, dimensions] from the output of `halfvec_send`."""
    if not values:
        return np.zeros((0, dimensions), np.float32)
    rows = np.frombuffer(b"".join(values), [("head", ">u4"), ("vector", ">f2", (dimensions,))])
    return rows["vector"].astype(np.float32)


def _fixed(oid: int, kind: str, values: Sequence[float]) -> BinaryParameter:
    rows = np.empty(len(values), [("length", ">u4"), ("value", kind)])
    rows["length"] = rows.dtype["value"].itemsize
    rows["value"] = values
    return _array(oid, len(values), rows.tobytes())


def _variable(oid: int, values: Sequence[bytes | None]) -> BinaryParameter:
    body = b"".join([_NULL if value is None else _LENGTH(len(value)) + value for value in values])
    return _array(oid, len(values), body, nulls=True)


def _array(oid: int, count: int, body: bytes, *, nulls: bool = False) -> BinaryParameter:
    if not count:
        return BinaryParameter(_EMPTY.pack(0, 0, oid))
    return BinaryParameter(_HEADER.pack(1, nulls, oid, count, 1) + body)
