"""Embedding spaces: list them, build another one, switch to it, and remove one.

Knows no HTTP and no SQL. Computes no vectors.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from db.embeddings.spaces import Space, SpaceRepository, SpaceState
from db.schema.tables import DIMENSIONS
from registry.store.records import EncoderRecord
from serving.core.caller import Caller
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict, NotFound

EncoderOf: TypeAlias = Callable[[str], Awaitable[EncoderRecord]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceProgress:
    """A space, the share of the texts that have its vector, and the seconds left at the present pace.

    `is_searched`: this process searches the space and stores its vectors. After a switch a process does so once an
    encoder of the live space runs.
    """

    space: Space
    share: float
    seconds_left: float | None
    is_searched: bool


@dataclass(frozen=True, slots=True)
class SpaceService:
    """Exactly one space is live: the one that is searched. Every space that isn't leaving gets each text's vector.

    Therefore the former live space stays whole after a switch, and a switch back is possible.
    """

    repository: SpaceRepository
    encoder_of: EncoderOf
    catalog: Callable[[], Catalog]

    async def list(self) -> Sequence[SpaceProgress]:
        """Return all spaces, the live one first."""
        with translate_database_errors():
            spaces = await self.repository.list()
        searched = self.catalog().space
        texts = max((space.vectors for space in spaces if space.state is SpaceState.LIVE), default=0)
        return [_progress(space, texts, searched) for space in spaces]

    async def begin(self, name: str, caller: Caller) -> SpaceProgress:
        """Start to build a space beside the live one.

        Raises:
            NotFound: no registered encoder defines it.
            Conflict: its vectors have other dimensions, or the present state forbids it.
        """
        encoder = await self.encoder_of(name)
        if encoder.dimensions != DIMENSIONS:
            raise Conflict(
                f"the space {name!r} has {encoder.dimensions} dimensions, and the index holds vectors of {DIMENSIONS}"
            )
        with translate_database_errors():
            await self.repository.begin(name, actor=caller.key_id)
        return await self._one(name)

    async def switch(self, name: str, caller: Caller) -> SpaceProgress:
        """Make a whole space live; the former live space stays whole, so that a switch back is possible.

        Raises:
            NotFound: no such space.
            Conflict: some texts lack its vector, or it is being removed.
        """
        with translate_database_errors():
            await self.repository.switch(name, actor=caller.key_id)
        return await self._one(name)

    async def remove(self, name: str, caller: Caller) -> SpaceProgress:
        """Start to remove a space that isn't live; this takes minutes, and the space is listed until it is gone.

        Raises:
            NotFound: no such space.
            Conflict: it is live, or was a moment ago.
        """
        with translate_database_errors():
            await self.repository.leave(name, actor=caller.key_id)
        return await self._one(name)

    async def _one(self, name: str) -> SpaceProgress:
        progress = next((each for each in await self.list() if each.space.name == name), None)
        if progress is None:
            raise NotFound(f"there is no space {name!r} any more")
        return progress


def _progress(space: Space, texts: int, searched: str | None) -> SpaceProgress:
    missing = max(0, texts - space.vectors)
    seconds_left = missing / space.pace if space.state is SpaceState.BUILDING and space.pace else None
    return SpaceProgress(
        space=space,
        share=1.0 if not texts else min(1.0, space.vectors / texts),
        seconds_left=seconds_left,
        is_searched=space.name == searched,
    )
