"""Keeps `serving.spaces.reembedding_worker` running for as long as there is another embedding space than the live one.

One per cluster is enough. Never reads a text.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Protocol

import structlog

from db.embeddings.spaces import SpaceState
from db.errors import DatabaseError
from serving.core.periodic import run_periodically
from serving.core.subprocesses import run_module

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 2.0
_LONGEST_PAUSE: Final = 60.0

Launch = Callable[[], Awaitable[str | None]]


class SpaceStates(Protocol):
    """The spaces, as whoever starts the work sees them."""

    async def states(self) -> Mapping[str, SpaceState]:
        """The state of each."""

    async def record_obstacle(self, name: str, reason: str) -> bool:
        """Note why one doesn't get on."""


class ReembeddingRunner:
    """What died is begun again; `launch` works until nothing is left to do: why, if it ended badly."""

    def __init__(self, spaces: SpaceStates, launch: Launch | None = None) -> None:
        self._spaces = spaces
        self._launch = launch or partial(run_module, "serving.spaces.reembedding_worker")

    async def run(self, every: float = _LOOK_SECONDS) -> None:
        """Look every so many seconds, for ever, and after pauses that double while the work keeps dying."""
        pause = every

        async def look() -> None:
            nonlocal pause
            pause = every if await self.look() else min(_LONGEST_PAUSE, 2 * pause)

        await run_periodically(look, every=lambda: pause, errors=DatabaseError, event="reembedding.postponed")

    async def look(self) -> bool:
        """Have done what there is to do: False if that died."""
        waiting = [
            name for name, state in (await self._spaces.states()).items() if state is not SpaceState.LIVE
        ]
        if not waiting or (why := await self._launch()) is None:
            return True
        log.warning("reembedding.died", reason=why)
        for name in waiting:
            await self._spaces.record_obstacle(name, why)
        return False
