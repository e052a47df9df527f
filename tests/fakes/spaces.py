"""An in-memory stand-in for the stored embedding spaces; it keeps their promises, and nothing after its process."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from db.embeddings.spaces import Space, SpaceState
from db.errors import Conflict, NotFound


class FakeSpaceRepository:
    """Spaces with as many vectors as a test gives them; one is whole once it has those of the live one."""

    def __init__(self, live: str, *, vectors: int = 0) -> None:
        self.rows = {live: replace(_fresh(live), state=SpaceState.LIVE, vectors=vectors)}

    async def list(self) -> list[Space]:
        """All, the live one first."""
        return sorted(self.rows.values(), key=lambda space: (space.state is not SpaceState.LIVE, space.name))

    async def states(self) -> Mapping[str, SpaceState]:
        """The state of each."""
        return {space.name: space.state for space in await self.list()}

    async def begin(self, name: str, *, actor: UUID | None) -> None:
        """Have one built."""
        if name in self.rows:
            if self.rows[name].state in (SpaceState.LIVE, SpaceState.LEAVING):
                raise Conflict(f"the space {name!r} is {self.rows[name].state}")
            return
        if len(self.rows) > 1:
            raise Conflict("another space exists in addition to the live one: remove it first")
        self.rows[name] = _fresh(name)

    async def switch(self, name: str, *, actor: UUID | None) -> None:
        """Make one live."""
        space, (live, *_) = self._row(name), await self.list()
        if space is live:
            return
        if space.vectors < live.vectors:
            raise Conflict(f"{live.vectors - space.vectors} texts have no vector of the space {name!r} yet")
        self.rows[live.name] = replace(live, state=SpaceState.WHOLE)
        self.rows[name] = replace(space, state=SpaceState.LIVE)

    async def leave(self, name: str, *, actor: UUID | None) -> None:
        """Have one removed."""
        if self._row(name).state is SpaceState.LIVE:
            raise Conflict(f"the space {name!r} is live: switch to another one first")
        self.rows[name] = replace(self.rows[name], state=SpaceState.LEAVING)

    async def record_obstacle(self, name: str, reason: str) -> bool:
        """Why it doesn't get on."""
        self.rows[name] = replace(self.rows[name], reason=reason)
        return True

    def _row(self, name: str) -> Space:
        if name not in self.rows:
            raise NotFound(f"there is no space {name!r}")
        return self.rows[name]


def _fresh(name: str) -> Space:
    return Space(
        name=name,
        state=SpaceState.BUILDING,
        vectors=0,
        begun_at=datetime(2026, 1, 1, tzinfo=UTC),
        live_at=None,
        pace=None,
        seen_at=None,
        reason=None,
    )
