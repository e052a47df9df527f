"""Use cases of embedding spaces: which one is searched, another built beside it, the switch, and the end of one.

Knows no HTTP and no SQL. Embeds nothing itself.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias
from uuid import UUID

from db.embeddings.spaces import Space, SpaceState
from db.schema.tables import DIMENSIONS
from registry.store.records import EncoderRecord
from serving.core.caller import Caller
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict, NotFound

EncoderOf: TypeAlias = Callable[[str], Awaitable[EncoderRecord]]


class SpaceRecords(Protocol):
    """The stored spaces."""

    async def list(self) -> Sequence[Space]:
        """All, the live one first."""

    async def begin(self, name: str, *, actor: UUID | None) -> None:
        """Have one built."""

    async def switch(self, name: str, *, actor: UUID | None) -> None:
        """Make one live."""

    async def leave(self, name: str, *, actor: UUID | None) -> None:
        """Have one removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceProgress:
    """A space and how far it is: `share` of the texts that have its vector, seconds `left` at the present pace.

    `answers`: this process searches it and stores its vectors, which it goes over to once the encoder of the live space
    runs.
    """

    space: Space
    share: float
    left: float | None
    answers: bool


class SpaceService:
    """Both spaces are live until the switch: a space that isn't leaving gets the vector of every text."""

    def __init__(self, records: SpaceRecords, encoder_of: EncoderOf, catalog: Callable[[], Catalog]) -> None:
        self._records = records
        self._encoder_of = encoder_of
        self._catalog = catalog

    async def list(self) -> Sequence[SpaceProgress]:
        """All, the live one first."""
        with translate_database_errors():
            spaces = await self._records.list()
        answering = self._catalog().space
        texts = max((space.vectors for space in spaces if space.state is SpaceState.LIVE), default=0)
        return [_standing(space, texts, answering) for space in spaces]

    async def begin(self, name: str, caller: Caller) -> SpaceProgress:
        """Have a space built beside the live one.

        Raises:
            NotFound: no registered encoder defines it.
            Conflict: its vectors have other dimensions, or the present state forbids it.
        """
        encoder = await self._encoder_of(name)
        if encoder.dimensions != DIMENSIONS:
            raise Conflict(
                f"the space {name!r} has {encoder.dimensions} dimensions, and the index holds vectors of {DIMENSIONS}"
            )
        with translate_database_errors():
            await self._records.begin(name, actor=caller.key_id)
        return await self._one(name)

    async def switch(self, name: str, caller: Caller) -> SpaceProgress:
        """Make a whole space the one that is searched; the one before stays whole, so that one may go back.

        Raises:
            NotFound: no such space.
            Conflict: texts lack its vector.
        """
        with translate_database_errors():
            await self._records.switch(name, actor=caller.key_id)
        return await self._one(name)

    async def remove(self, name: str, caller: Caller) -> SpaceProgress:
        """Have a space removed that isn't live, whole or not; it takes minutes, and is in the list until it is gone.

        Raises:
            NotFound: no such space.
            Conflict: it is live, or was until just now.
        """
        with translate_database_errors():
            await self._records.leave(name, actor=caller.key_id)
        return await self._one(name)

    async def _one(self, name: str) -> SpaceProgress:
        found = next((each for each in await self.list() if each.space.name == name), None)
        if found is None:
            raise NotFound(f"there is no space {name!r} any more")
        return found


def _standing(space: Space, texts: int, answering: str | None) -> SpaceProgress:
    lacking = max(0, texts - space.vectors)
    left = lacking / space.pace if space.state is SpaceState.BUILDING and space.pace else None
    return SpaceProgress(
        space=space,
        share=1.0 if not texts else min(1.0, space.vectors / texts),
        left=left,
        answers=space.name == answering,
    )
