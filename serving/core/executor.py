"""Heavy computing outside the event loop: one thread of low priority, and a bounded queue before it."""

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
    """Runs one computation at a time outside the event loop; `close` waits for one that has begun."""

    def __init__(self, *, waiting: int = _WAITING) -> None:
        self._room = waiting + 1
        # On Linux each thread has its own niceness.
        self._thread = ThreadPoolExecutor(1, "valence-aside", initializer=lambda: os.nice(_NICENESS))

    async def run(self, compute: Callable[[], Result]) -> Result:
        """Compute in the thread, and return the result.

        Raises:
            Overloaded: too many computations wait already.
        """
        if self._room == 0:
            raise Overloaded("other analyses are under way: try again", retry_after=2)
        self._room -= 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, compute)
        work.add_done_callback(self._freed)
        # A caller that is cancelled frees no room: the thread finishes the computation.
        return await asyncio.shield(work)

    async def close(self) -> None:
        """Cancel the waiting computations, and wait for the running one."""
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _freed(self, work: "asyncio.Future[Any]") -> None:
        self._room += 1
        if not work.cancelled():
            # Retrieve it, because the caller may have left.
            work.exception()
