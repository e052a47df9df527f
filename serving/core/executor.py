"""Heavy computing beside serving: one thread that yields to everybody else, and a bounded queue before it."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from serving.errors import Overloaded

Result = TypeVar("Result")

_WAITING: Final = 4
_NICENESS: Final = 10


class BackgroundExecutor:
    """Runs one computation at a time off the event loop; those that were begun end before `close` does."""

    def __init__(self, *, waiting: int = _WAITING) -> None:
        self._room = waiting + 1
        # On Linux niceness is a thread's own.
        self._thread = ThreadPoolExecutor(1, "valence-aside", initializer=lambda: os.nice(_NICENESS))

    async def run(self, compute: Callable[[], Result]) -> Result:
        """What it returns or raises.

        Raises:
            Overloaded: too many wait already.
        """
        if self._room == 0:
            raise Overloaded("other analyses are under way: try again", retry_after=2)
        self._room -= 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, compute)
        work.add_done_callback(self._freed)
        # Whoever leaves frees no room: the thread goes on with what it began.
        return await asyncio.shield(work)

    async def close(self) -> None:
        """Drop what waits, and let what runs end."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _freed(self, work: "asyncio.Future[Any]") -> None:
        self._room += 1
        if not work.cancelled():
            # Nobody may be left to ask for it.
            work.exception()
