"""Keeps `serving.reembedding` running for as long as there is another embedding space than the live one.

One per cluster is enough. Never reads a text.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Protocol

import structlog

from db.errors import DatabaseError
from db.spaces import State
from serving.background import launched

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 2.0

Launch = Callable[[], Awaitable[str | None]]


class SpaceStates(Protocol):
    """The spaces, as whoever starts the work sees them."""

    async def states(self) -> Mapping[str, State]:
        """The state of each."""

    async def stuck(self, name: str, reason: str) -> bool:
        """Note why one doesn't get on."""


class Reembeddings:
    """What died is begun again; `launch` works until nothing is left to do: why, if it ended badly."""

    def __init__(self, spaces: SpaceStates, launch: Launch | None = None) -> None:
        self._spaces = spaces
        self._launch = launch or partial(launched, "serving.reembedding")

    async def run(self, every: float = _LOOK_SECONDS) -> None:
        """Look every so many seconds, for ever; a database that is down is waited for."""
        while True:
            try:
                await self.look()
            except DatabaseError as error:
                log.warning("reembedding.postponed", error=str(error))
            await asyncio.sleep(every)

    async def look(self) -> None:
        """Have done what there is to do."""
        waiting = [name for name, state in (await self._spaces.states()).items() if state is not State.LIVE]
        if not waiting:
            return
        if (why := await self._launch()) is not None:
            log.warning("reembedding.died", reason=why)
            for name in waiting:
                await self._spaces.stuck(name, why)
