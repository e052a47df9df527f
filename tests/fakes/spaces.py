"""A fake of the embedding spaces."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from db.embeddings.spaces import FOLLOWED_SECONDS, Space, SpaceState
from db.errors import Conflict, NotFound
from tests.fakes.store import FakeStore


class FakeSpaceRepository:
    """Spaces in memory; a test sets their vectors, and a space is whole once it has as many as the live one."""

    def __init__(self, store: FakeStore, live: str) -> None:
        self._store = store
        self.rows = {
            live: replace(_new(live), state=SpaceState.LIVE, live_at=datetime(2026, 1, 1, tzinfo=UTC))
        }

    async def list(self) -> list[Space]:
        """Return all spaces, the live one first."""
        return sorted(self.rows.values(), key=lambda space: (space.state is not SpaceState.LIVE, space.name))

    async def states(self) -> Mapping[str, SpaceState]:
        """Return the state of every space, the live one first."""
        return {space.name: space.state for space in await self.list()}

    async def begin(self, name: str, *, actor: UUID | None) -> None:
        """Start to build a space beside the live one."""
        if name in self.rows:
            if self.rows[name].state in (SpaceState.LIVE, SpaceState.LEAVING):
                raise Conflict(f"the space {name!r} is {self.rows[name].state}")
            return
        if len(self.rows) > 1:
            raise Conflict("another space exists in addition to the live one: remove it first")
        self.rows[name] = _new(name)
        self._store.append(actor, "space.begin", name)

    async def switch(self, name: str, *, actor: UUID | None) -> None:
        """Make a whole space live; the former live space stays whole."""
        space, (live, *_) = self._row(name), await self.list()
        if space is live:
            return
        if space.state is SpaceState.LEAVING:
            raise Conflict(f"the space {name!r} is being removed")
        if space.vectors < live.vectors:
            raise Conflict(f"{live.vectors - space.vectors} texts have no vector of the space {name!r} yet")
        self.rows[live.name] = replace(live, state=SpaceState.WHOLE)
        self.rows[name] = replace(space, state=SpaceState.LIVE, live_at=datetime.now(UTC))
        self._store.append(actor, "space.switch", name, {"before": live.name})

    async def leave(self, name: str, *, actor: UUID | None) -> None:
        """Start to remove a space."""
        space, (live, *_) = self._row(name), await self.list()
        if space.state is SpaceState.LEAVING:
            return
        if space is live:
            raise Conflict(f"the space {name!r} is live: switch to another one first")
        followed = datetime.now(UTC) - timedelta(seconds=FOLLOWED_SECONDS)
        if space.live_at is not None and live.live_at is not None and live.live_at > followed:
            raise Conflict(f"the space {name!r} was live a moment ago: remove it in a minute")
        self.rows[name] = replace(space, state=SpaceState.LEAVING)
        self._store.append(actor, "space.leave", name)

    async def record_obstacle(self, name: str, reason: str) -> bool:
        """Record why the space isn't filled; return False if there is no such space."""
        if name not in self.rows:
            return False
        self.rows[name] = replace(self.rows[name], reason=reason, seen_at=datetime.now(UTC))
        return True

    def _row(self, name: str) -> Space:
        if name not in self.rows:
            raise NotFound(f"there is no space {name!r}")
        return self.rows[name]


def _new(name: str) -> Space:
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
