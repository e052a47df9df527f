"""Run `serving.spaces.reembedding_worker` while there is a space in addition to the live one.

One per cluster is enough. Never reads a text.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog

from db.embeddings.spaces import SpaceRepository, SpaceState
from db.errors import DatabaseError
from serving.core.periodic import run_periodically
from serving.core.subprocesses import run_module

log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 2.0
_LONGEST_PAUSE: Final = 60.0

Launch = Callable[[], Awaitable[str | None]]
run_worker: Launch = partial(run_module, "serving.spaces.reembedding_worker")


class ReembeddingRunner:
    """Runs the worker when a space needs it, and again when it has failed.

    `launch` runs the worker until nothing is left to do, and returns the reason if it failed.
    """

    def __init__(self, spaces: SpaceRepository, launch: Launch = run_worker) -> None:
        self._spaces = spaces
        self._launch = launch

    async def run(self, every: float = _POLL_SECONDS) -> None:
        """Check for work every `every` seconds, without end; double the pause each time the worker fails."""
        pause = every

        async def check() -> None:
            nonlocal pause
            pause = every if await self.run_once() else min(_LONGEST_PAUSE, 2 * pause)

        await run_periodically(
            check, every=lambda: pause, errors=DatabaseError, event="reembedding.postponed"
        )

    async def run_once(self) -> bool:
        """Run the worker if a space needs it; return False if the worker failed."""
        waiting = [
            name for name, state in (await self._spaces.states()).items() if state is not SpaceState.LIVE
        ]
        if not waiting or (why := await self._launch()) is None:
            return True
        log.warning("reembedding.died", reason=why)
        for name in waiting:
            await self._spaces.record_obstacle(name, why)
        return False
