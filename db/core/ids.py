"""Ids: UUIDv7 for predictions, keyed hashes for texts.

Owns how ids are made and read. Never reads or writes the database.
"""

import hashlib
import hmac
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from db.errors import ClockBeyondPartitions

_VERSION_7 = 0x7 << 76
_VERSION_8 = 0x8 << 76
_VARIANT = 0b10 << 62
_STAMPED = ~((0xF << 76) | (0b11 << 62)) & ((1 << 128) - 1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICKS = 4096  # of a millisecond: the 12 bits after the version


class Uuid7Clock:
    """UUIDv7 ids (RFC 9562, method 3) that only grow within a process.

    If the wall clock steps back, ids count on from the last one. `set_bounds` keeps them within the existing
    partitions: an earlier time is raised to the first partition, a later one is refused. A bound never shrinks, because
    a clock that was ahead left ids up to it.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._last = 0
        self._end: int | None = None
        self._lock = threading.Lock()

    def set_bounds(self, start: datetime, end: datetime) -> None:
        """Keep ids in [start, end) from now on; both are bounds of partitions."""
        with self._lock:
            self._last = max(self._last, _milliseconds(start) * _TICKS - 1)
            self._end = max(self._end or 0, _milliseconds(end) * _TICKS)

    def next(self) -> UUID:
        """Return the next id. Raises ClockBeyondPartitions if the clock has passed the last partition."""
        milliseconds, rest = divmod(self._now_ns(), 1_000_000)
        now = milliseconds * _TICKS + rest * _TICKS // 1_000_000
        with self._lock:
            tick = max(now, self._last + 1)
            if self._end is not None and tick >= self._end:
                raise ClockBeyondPartitions(
                    "the clock reads a time beyond the last partition: partitions are made ahead of time, "
                    "so check this machine's clock"
                )
            self._last = tick
        tail = int.from_bytes(os.urandom(8), "big") >> 2
        return UUID(int=(tick >> 12) << 80 | _VERSION_7 | (tick & 0xFFF) << 64 | _VARIANT | tail)


def uuid7_time(value: UUID) -> datetime:
    """Return when a UUIDv7 was made, in UTC, cut to the microsecond."""
    bits = value.int
    return _EPOCH + timedelta(milliseconds=bits >> 80, microseconds=((bits >> 64) & 0xFFF) * 1000 // _TICKS)


def uuid7_floor(moment: datetime) -> UUID:
    """Return the smallest UUIDv7 that can be made at or after `moment`; also a bound between partitions.

    No id was made before the epoch, so an earlier moment has the epoch's floor.
    """
    milliseconds, rest = divmod((max(moment, _EPOCH) - _EPOCH) // timedelta(microseconds=1), 1000)
    return UUID(int=milliseconds << 80 | _VERSION_7 | (rest * _TICKS // 1000) << 64)


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


class TextIds:
    """Ids of texts, by a keyed hash.

    Equal texts have equal ids, and only someone who has the installation key can test a guess.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError("the installation key must have at least 32 bytes")
        self._key = key

    def __call__(self, text: str) -> UUID:
        digest = hmac.digest(self._key, text.encode(), hashlib.sha256)
        return UUID(int=int.from_bytes(digest[:16], "big") & _STAMPED | _VERSION_8 | _VARIANT)


def fingerprint(key: bytes) -> bytes:
    """Return 16 bytes by which a database recognises the installation key without holding it."""
    return hmac.digest(key, b"valence installation fingerprint", hashlib.sha256)[:16]
