"""Bounds of bodies: each comes at a least rate, and few of one key come slowly, or are large, at once.

Knows bytes and seconds only. HAProxy, Ray's proxy and uvicorn hand a request on before its body has come.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from starlette.types import Message, Receive

from serving.errors import Overloaded, TooSlow

# 2 MiB at 256 kbit/s take 66 s; they may take 139.
GRACE_SECONDS: Final = 10.0
LEAST_RATE: Final = 16 * 1024
_PROMPT_SECONDS: Final = 1.0
# Of one key: each is in memory until its request is answered.
_MOST_LARGE: Final = 8


class UploadLimits:
    """Bounds the bodies under way: no key holds more than `most` that take over a second, or `most_large` large ones.

    Requests without credentials count as those of one key.
    """

    def __init__(
        self,
        most: int = 50,
        *,
        most_large: int = _MOST_LARGE,
        prompt_seconds: float = _PROMPT_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._most = most
        self._most_large = most_large
        self._prompt_seconds = prompt_seconds
        self._grace_seconds = grace_seconds
        self._slow: Counter[UUID | None] = Counter()
        self._large: Counter[UUID | None] = Counter()

    @contextmanager
    def open(self, receive: Receive, key_id: UUID | None) -> Iterator["Upload"]:
        """Yield the body of a request, which begins now; leave when the request is answered."""
        upload = Upload(self, receive, key_id)
        try:
            yield upload
        finally:
            upload.finish()
            if upload.is_large:
                _take_off(self._large, key_id)

    def admit_slow(self, key_id: UUID | None) -> None:
        """Count one more slow body. Raise Overloaded if this key has too many."""
        if self._slow[key_id] >= self._most:
            raise Overloaded("too many bodies of this key are under way: send fewer at once", retry_after=2)
        self._slow[key_id] += 1

    def release_slow(self, key_id: UUID | None) -> None:
        """Count one slow body less."""
        _take_off(self._slow, key_id)

    def admit_large(self, key_id: UUID | None) -> None:
        """Count one more large body. Raise Overloaded if this key has too many."""
        if self._large[key_id] >= self._most_large:
            raise Overloaded(
                "too many large bodies of this key are being answered: send fewer at once", retry_after=2
            )
        self._large[key_id] += 1

    def deadlines(self, started: float, size: int) -> tuple[float, float]:
        """Return when a body counts as slow, and when the byte after the first `size` must be there."""
        return started + self._prompt_seconds, started + self._grace_seconds + size / LEAST_RATE


class Upload:
    """The body of one request, message by message."""

    def __init__(self, limits: UploadLimits, receive: Receive, key_id: UUID | None) -> None:
        self._limits = limits
        self._receive = receive
        self._key_id = key_id
        self._started = asyncio.get_running_loop().time()
        self.is_slow = False
        self.is_large = False

    def grow_large(self) -> None:
        """Count the body as large. Raise Overloaded if too many others of its key are."""
        if not self.is_large:
            self._limits.admit_large(self._key_id)
            self.is_large = True

    def finish(self) -> None:
        """Note that the body has come, or never will."""
        if self.is_slow:
            self.is_slow = False
            self._limits.release_slow(self._key_id)

    async def receive(self, size: int) -> Message:
        """Return the next message, after `size` bytes.

        Raises:
            TooSlow: it didn't come in time.
            Overloaded: it is slow, and so are too many others of its key.
        """
        prompt, latest = self._limits.deadlines(self._started, size)
        try:
            if not self.is_slow:
                try:
                    async with asyncio.timeout_at(prompt):
                        return await self._receive()
                except TimeoutError:
                    self._limits.admit_slow(self._key_id)
                    self.is_slow = True
            async with asyncio.timeout_at(latest):
                return await self._receive()
        except TimeoutError:
            raise TooSlow("the body came too slowly: send it at 16 KiB/s or faster") from None


def _take_off(counter: Counter[UUID | None], key_id: UUID | None) -> None:
    counter[key_id] -= 1
    if not counter[key_id]:
        del counter[key_id]
