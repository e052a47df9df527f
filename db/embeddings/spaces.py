"""Embedding spaces: the live one, the progress of another, and the switch between them.

Owns the order of states: building, whole, live, leaving. Makes no vector and drops no segment.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, LiteralString
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.accounts import audit
from db.connection.repository import Repository, run_sql
from db.core.ids import uuid7_floor
from db.errors import Conflict, NotFound
from db.schema.tables import NIL_ID

_LOCK: Final = 0x56414C_5350_4345
# A text that is younger may lack a vector that another process is about to store.
FRESH_SECONDS: Final = 10.0
# For this long after a switch a process may still write into the previous space.
FOLLOWED_SECONDS: Final = 60.0

_FIELDS: Final = "name, state, begun_at, live_at, pace, seen_at, reason"
_VECTORS: Final[LiteralString] = """
    (SELECT coalesce(sum(CASE WHEN g.state = 'open' THEN (
        SELECT count(*) FROM embeddings e WHERE e.segment = g.id) ELSE g.rows END), 0)::bigint
     FROM segments g WHERE g.space = s.name AND g.state IN ('open', 'closed', 'indexed'))"""
_LACKING: Final[LiteralString] = """
    SELECT count(*) FROM text_inputs WHERE NOT spaces @> ARRAY[CAST(:name AS text)] AND id <> :nobody
        AND created_at < now() - make_interval(secs => :fresh)"""

_LACKING_SINCE: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM predictions p JOIN text_inputs t ON t.id = p.text_id
        WHERE p.id >= :since AND p.id < :until AND t.id <> :nobody
            AND NOT t.spaces @> ARRAY[CAST(:name AS text)])"""


class SpaceState(StrEnum):
    """The state of a space.

    `building`: some texts have no vector of it; `whole`: every text has one, and new texts get one; `live`: searches
    use it; `leaving`: it is being removed.
    """

    BUILDING = "building"
    WHOLE = "whole"
    LIVE = "live"
    LEAVING = "leaving"


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A space and its number of vectors; `pace` in texts a second, `reason` says what hinders its progress."""

    name: str
    state: SpaceState
    vectors: int
    begun_at: datetime
    live_at: datetime | None
    pace: float | None
    seen_at: datetime | None
    reason: str | None


class SpaceRepository(Repository):
    """At most one space is live, and exactly one after `ensure_live`.

    `begin`, `switch` and `leave` each run in one transaction, which also writes the audit log.
    """

    async def ensure_live(self, name: str) -> str:
        """Return the live space; make it `name` in a database that has none yet."""
        if (live := await self.live()) is not None:
            return live
        async with self._exclusive() as connection:
            await run_sql(
                connection,
                "INSERT INTO spaces (name, state, live_at) SELECT :name, 'live', now() "
                "WHERE NOT EXISTS (SELECT FROM spaces WHERE state = 'live') ON CONFLICT DO NOTHING",
                name=name,
            )
        return await self.live() or name

    async def live(self) -> str | None:
        """Return the live space's name."""
        async with self._database.begin() as connection:
            result = await connection.exec_driver_sql("SELECT name FROM spaces WHERE state = 'live'")
            name: str | None = result.scalar_one_or_none()
            return name

    async def states(self) -> Mapping[str, SpaceState]:
        """Return the state of every space, the live one first; a cheap read."""
        async with self._database.begin() as connection:
            return await _states(connection)

    async def list(self) -> tuple[Space, ...]:
        """Return all spaces, the live one first."""
        async with self._database.begin() as connection:
            rows = await connection.execute(
                text(
                    f"SELECT {_FIELDS}, {_VECTORS} AS vectors FROM spaces s "  # noqa: S608 - literals only
                    "ORDER BY state <> 'live', name"
                )
            )
            return tuple(Space(**{**row._mapping, "state": SpaceState(row.state)}) for row in rows)

    async def begin(self, name: str, *, actor: UUID | None) -> None:
        """Begin to build a space in addition to the live one; do nothing if that has begun already.

        Raises Conflict if it is live or leaving, or there is a third space.
        """
        async with self._exclusive() as connection:
            states = await _states(connection)
            match states.get(name):
                case SpaceState.BUILDING | SpaceState.WHOLE:
                    return
                case SpaceState.LIVE:
                    raise Conflict(f"the space {name!r} is live")
                case SpaceState.LEAVING:
                    raise Conflict(f"the space {name!r} is being removed: try again once it is gone")
            if other := next((each for each, state in states.items() if state is not SpaceState.LIVE), None):
                raise Conflict(f"the space {other!r} exists in addition to the live one: remove it first")
            await run_sql(
                connection, "INSERT INTO spaces (name, state) VALUES (:name, 'building')", name=name
            )
            await audit.append(connection, actor=actor, action="space.begin", subject=name)

    async def switch(self, name: str, *, actor: UUID | None) -> None:
        """Make a whole space the live one and the live one whole; do nothing if it is live already.

        Raises NotFound if there is none, Conflict if texts have no vector of it yet, or it is leaving.
        """
        async with self._exclusive() as connection:
            state = await _state(connection, name)
            if state is SpaceState.LIVE:
                return
            if state is SpaceState.LEAVING:
                raise Conflict(f"the space {name!r} is being removed")
            # A scan of all texts, which no index avoids.
            await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            counted = await run_sql(connection, _LACKING, name=name, nobody=NIL_ID, fresh=FRESH_SECONDS)
            if lacking := int(counted.scalar_one()):
                raise Conflict(
                    f"{lacking} texts have no vector of the space {name!r} yet: switch once it is whole"
                )
            replaced = await run_sql(
                connection, "UPDATE spaces SET state = 'whole' WHERE state = 'live' RETURNING name"
            )
            detail = {"before": replaced.scalar_one_or_none()}
            await run_sql(
                connection,
                "UPDATE spaces SET state = 'live', live_at = clock_timestamp() WHERE name = :name",
                name=name,
            )
            await audit.append(connection, actor=actor, action="space.switch", subject=name, detail=detail)

    async def is_caught_up(self, name: str, *, within: float = 2.0) -> bool:
        """Return whether the live space has all texts since its switch, except those of the last `within` seconds."""
        async with self._database.begin() as connection:
            switched = await run_sql(
                connection,
                "SELECT live_at, clock_timestamp() AS now FROM spaces WHERE name = :name",
                name=name,
            )
            row = switched.one_or_none()
            if row is None or row.live_at is None:
                return False
            since = uuid7_floor(row.live_at - 2 * timedelta(seconds=FRESH_SECONDS))
            until = uuid7_floor(row.now - timedelta(seconds=within))
            lacking = await run_sql(
                connection, _LACKING_SINCE, name=name, nobody=NIL_ID, since=since, until=until
            )
            return not lacking.scalar_one()

    async def leave(self, name: str, *, actor: UUID | None, followed: float = FOLLOWED_SECONDS) -> None:
        """Begin to remove a space and its vectors; do nothing if that has begun already.

        `followed`: seconds after a switch in which the previous space can't leave.

        Raises NotFound if there is none, Conflict if it is live, or was until a moment ago.
        """
        async with self._exclusive() as connection:
            state = await _state(connection, name)
            if state is SpaceState.LEAVING:
                return
            if state is SpaceState.LIVE:
                raise Conflict(f"the space {name!r} is live: switch to another one first")
            just_live = await run_sql(
                connection,
                "SELECT EXISTS (SELECT FROM spaces WHERE state = 'live' "
                "AND live_at > clock_timestamp() - make_interval(secs => :followed)) "
                "AND live_at IS NOT NULL FROM spaces WHERE name = :name",
                name=name,
                followed=followed,
            )
            if just_live.scalar_one():
                raise Conflict(f"the space {name!r} was live a moment ago: remove it in a minute")
            await run_sql(connection, "UPDATE spaces SET state = 'leaving' WHERE name = :name", name=name)
            await audit.append(connection, actor=actor, action="space.leave", subject=name)

    async def mark_whole(self, name: str) -> bool:
        """Record that every text has a vector of a space; return False unless it was being built."""
        return await self._change(
            "UPDATE spaces SET state = 'whole' WHERE name = :name AND state = 'building'", name=name
        )

    async def record_progress(self, name: str, *, pace: float | None) -> bool:
        """Record that texts get their vectors; return False if there is no such space."""
        return await self._change(
            "UPDATE spaces SET pace = :pace, seen_at = clock_timestamp(), reason = NULL WHERE name = :name",
            name=name,
            pace=pace,
        )

    async def record_obstacle(self, name: str, reason: str) -> bool:
        """Record what hinders its progress; return False if there is no such space."""
        return await self._change(
            "UPDATE spaces SET reason = :reason, seen_at = clock_timestamp() WHERE name = :name",
            name=name,
            reason=reason,
        )

    async def delete_if_empty(self, name: str) -> bool:
        """Delete a leaving space once it has no segment and no text; return whether it is deleted."""
        async with self._exclusive() as connection:
            await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            gone = await run_sql(
                connection,
                "DELETE FROM spaces WHERE name = :name AND state = 'leaving' "
                "AND NOT EXISTS (SELECT FROM segments WHERE space = :name) AND NOT EXISTS "
                "(SELECT FROM text_inputs WHERE spaces @> ARRAY[CAST(:name AS text)])",
                name=name,
            )
            return bool(gone.rowcount)

    async def _change(self, change: LiteralString, **values: Any) -> bool:
        async with self._database.begin() as connection:
            return bool((await run_sql(connection, change, **values)).rowcount)

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[AsyncConnection]:
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            yield connection


async def _states(connection: AsyncConnection) -> dict[str, SpaceState]:
    rows = await connection.exec_driver_sql("SELECT name, state FROM spaces ORDER BY state <> 'live', name")
    return {row.name: SpaceState(row.state) for row in rows}


async def _state(connection: AsyncConnection, name: str) -> SpaceState:
    if (state := (await _states(connection)).get(name)) is None:
        raise NotFound(f"there is no space {name!r}")
    return state
