"""The segments of the vector index: one open for writing, full ones closed, indexed and merged in the background.

Owns partitions of `embeddings` and their HNSW indexes. A vector lies in exactly one segment that is searched at
every moment, because each step is one transaction. Tables are made and dropped by functions of the schema's owner, so
that the application's role needn't own any.
"""

from typing import Final, LiteralString

from psycopg import sql
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.engine import Database

ROWS: Final = 50_000
M: Final = 16
# Neighbours a vector in a graph of more rows than that: with 16 a million's need twice the walk for what they find.
M_LARGE: Final = 24
LARGE_ROWS: Final = 100_000
EF_CONSTRUCTION: Final = 64
FAN_IN: Final = 4
# What the graph of an index takes while it is built, for a vector of 384 dimensions in half precision.
_BYTES_A_ROW: Final = 1_900
_LEAST_MEMORY: Final = 128 << 20
_LOCK: Final = 0x56414C_5345_474D
_INDEX_LOCK: Final = 0x56414C_494E_4458
_MERGE_LOCK: Final = 0x56414C_4D45_5247
_MOVE_LOCK: Final = 0x56414C_4D4F_5645

# The smallest segments, as many as make the largest of them grow by enough to be worth another graph.
_MERGEABLE: Final[LiteralString] = """
    SELECT ids FROM (
        SELECT array_agg(id) OVER smaller AS ids, min(rows) OVER smaller AS smallest, rows AS largest,
            sum(rows) OVER smaller AS together
        FROM segments WHERE space = :space AND state = 'indexed' WINDOW smaller AS (ORDER BY rows, id)) sized
    WHERE cardinality(ids) > 1 AND together <= :most
    AND together >= :fan_in * smallest AND (together - largest) * :fan_in >= largest
    ORDER BY together DESC LIMIT 1"""


class Segments:
    """Each space has one open segment; `roll` and `index_next` may be called by anyone, at any time."""

    def __init__(self, database: Database, space: str) -> None:
        self._database = database
        self._space = space

    async def ensure(self) -> int:
        """The open segment's id; opens the space's first one if there is none."""
        async with self._database.begin() as connection:
            found = await self._open(connection)
            if found is None:
                await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                found = await self._open(connection)
            return found if found is not None else await self._add(connection)

    async def roll(self, limit: int = ROWS) -> int | None:
        """Closes the open segment if it holds `limit` vectors and opens the next: its id, else None."""
        async with self._database.begin() as connection:
            if not await _try_lock(connection, _LOCK):
                return None
            segment = await self._open(connection)
            if segment is None:
                return await self._add(connection)
            counted = await connection.execute(
                text("SELECT count(*) FROM embeddings WHERE segment = :segment"), {"segment": segment}
            )
            rows = int(counted.scalar_one())
            if rows < limit:
                return None
            await connection.execute(
                text(
                    "UPDATE segments SET state = 'closed', rows = :rows, closed_at = now() "
                    "WHERE id = :segment"
                ),
                {"rows": rows, "segment": segment},
            )
            return await self._add(connection)

    async def index_next(self, *, timeout: float = 0.2) -> int | None:
        """Indexes the oldest closed segment; its id, or None if there is nothing to do or another does it.

        Writers that still saw it open have ended before: one that came when it is merged already would add to what
        nobody searches. `timeout`: seconds that it may wait for them, while others wait behind it.

        Raises:
            Unavailable: it waited in vain; try later.
        """
        async with self._database.begin() as connection:
            found = await connection.execute(
                text("SELECT id FROM segments WHERE space = :space AND state = 'closed' ORDER BY id LIMIT 1"),
                {"space": self._space},
            )
            segment: int | None = found.scalar_one_or_none()
            if segment is None:
                return None
            await _wait_at_most(connection, timeout)
            # Whoever adds vectors has this lock before it looks for the open segment.
            await connection.exec_driver_sql("LOCK TABLE ONLY embeddings IN SHARE MODE")
        async with self._database.begin() as connection:
            if not await _try_lock(connection, _INDEX_LOCK):
                return None
            found = await connection.execute(
                text("SELECT rows FROM segments WHERE id = :segment AND state = 'closed'"),
                {"segment": segment},
            )
            rows: int | None = found.scalar_one_or_none()
            if rows is None:
                return None
            await _index(connection, segment, rows)
            await self._indexed(connection, segment)
            return segment

    async def merge_next(self, *, fan_in: int = FAN_IN, memory: int = 1 << 30) -> int | None:
        """Merges the smallest indexed segments: the new one's id, or None if there is nothing to do.

        As many as together hold `fan_in` times the smallest, and of which those beside the largest hold a `fan_in`th
        of it: a search enters few graphs, and each vector is indexed anew a logarithm of times (fewer where merges
        lag behind and take more at once). `memory`: bytes a build may take, which bounds a segment. The old ones are
        retired: searches that began before still read them. Writers never wait; who erases waits for the last
        statements, not for the build.
        """
        sizes = {"space": self._space, "fan_in": fan_in, "most": memory // _BYTES_A_ROW}
        async with self._database.begin() as connection:
            if (await connection.execute(text(_MERGEABLE), sizes)).one_or_none() is None:
                return None
            await self._reserve(connection)
        async with self._database.begin() as connection:
            if not await _try_lock(connection, _MERGE_LOCK):
                return None
            merged = await self._reserved(connection)
            old: list[int] | None = (await connection.execute(text(_MERGEABLE), sizes)).scalar_one_or_none()
            if merged is None or old is None:
                return None
            rows = await _copy(connection, old, merged)
            await _index(connection, merged, rows)
            await _catch_up(connection, old, merged)
            await _attach(connection, merged)
            await connection.execute(
                text(
                    "UPDATE segments SET state = 'retired', retired_at = clock_timestamp() WHERE id = ANY(:old)"
                ),
                {"old": old},
            )
            await self._indexed(connection, merged)
            return merged

    async def drop_next(self, *, grace: float = 60.0, timeout: float = 0.2) -> int | None:
        """Drops the oldest retired segment: its id, or None if there is nothing to do.

        `grace`: seconds since its retirement, so that searches which still read it have ended. `timeout`: seconds
        that it may wait for the table, while others wait behind it.

        Raises:
            Unavailable: it waited in vain; try later.
        """
        async with self._database.begin() as connection:
            if not await _try_lock(connection, _MERGE_LOCK):
                return None
            found = await connection.execute(
                text(
                    "DELETE FROM segments WHERE id = (SELECT id FROM segments WHERE space = :space "
                    "AND state = 'retired' AND retired_at <= now() - make_interval(secs => :grace) "
                    "ORDER BY id LIMIT 1) RETURNING id"
                ),
                {"space": self._space, "grace": grace},
            )
            segment: int | None = found.scalar_one_or_none()
            if segment is not None:
                await _wait_at_most(connection, timeout)
                await connection.execute(text("SELECT drop_segment(:segment)"), {"segment": segment})
            return segment

    async def retire(self) -> int:
        """Retires all segments of a space that leaves: how many; none while an index is being built."""
        async with self._database.begin() as connection:
            # What is built or merged now would come back.
            for lock in (_LOCK, _INDEX_LOCK, _MERGE_LOCK):
                if not await _try_lock(connection, lock):
                    return 0
            await connection.execute(
                text("DELETE FROM segments WHERE space = :space AND state = 'merging'"),
                {"space": self._space},
            )
            retired = await connection.execute(
                text(
                    "UPDATE segments SET state = 'retired', retired_at = clock_timestamp() "
                    "WHERE space = :space AND state <> 'retired'"
                ),
                {"space": self._space},
            )
            return retired.rowcount

    async def _open(self, connection: AsyncConnection) -> int | None:
        found = await connection.execute(
            text("SELECT id FROM segments WHERE space = :space AND state = 'open'"), {"space": self._space}
        )
        return found.scalar_one_or_none()

    async def _add(self, connection: AsyncConnection) -> int:
        segment = await _next_id(connection)
        await connection.execute(text("SELECT make_segment(:segment)"), {"segment": segment})
        await _attach(connection, segment)
        await self._register(connection, segment, "open")
        return segment

    async def _reserve(self, connection: AsyncConnection) -> None:
        """Takes a number for the segment that is merged next, unless a killed merge left one."""
        await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        if await self._reserved(connection) is None:
            await self._register(connection, await _next_id(connection), "merging")

    async def _reserved(self, connection: AsyncConnection) -> int | None:
        found = await connection.execute(
            text("SELECT id FROM segments WHERE space = :space AND state = 'merging'"), {"space": self._space}
        )
        return found.scalar_one_or_none()

    async def _indexed(self, connection: AsyncConnection, segment: int) -> None:
        await connection.execute(
            text(
                "UPDATE segments SET state = 'indexed', indexed_at = clock_timestamp(), "
                "rows = (SELECT count(*) FROM embeddings WHERE segment = :segment) WHERE id = :segment"
            ),
            {"segment": segment},
        )

    async def _register(self, connection: AsyncConnection, segment: int, state: str) -> None:
        await connection.execute(
            text("INSERT INTO segments (id, space, state) VALUES (:id, :space, :state)"),
            {"id": segment, "space": self._space, "state": state},
        )


async def prevent_moves(connection: AsyncConnection) -> None:
    """Until the transaction ends no vector moves on: who removes vectors calls it before.

    A removal that waits for a segment while it is merged doesn't know of the segment that takes its place, and would
    leave its vector there.
    """
    await connection.exec_driver_sql("SELECT pg_advisory_xact_lock_shared(%s)", (_MOVE_LOCK,))


async def _next_id(connection: AsyncConnection) -> int:
    found = await connection.exec_driver_sql("SELECT coalesce(max(id), 0) + 1 FROM segments")
    return int(found.scalar_one())


async def _copy(connection: AsyncConnection, old: list[int], merged: int) -> int:
    """A table of its own with what is in the old segments now; how many rows."""
    await connection.execute(text("SELECT make_segment(:segment)"), {"segment": merged})
    await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    copied = await _run(
        connection,
        "INSERT INTO {table} (text_id, segment, embedding) "
        "SELECT text_id, {segment}, embedding FROM embeddings WHERE segment = ANY({old})",
        merged,
        old,
    )
    await connection.execute(text("SELECT key_segment(:segment)"), {"segment": merged})
    return copied


async def _catch_up(connection: AsyncConnection, old: list[int], merged: int) -> None:
    """What was erased from the old segments, or came late, since they were copied; from now on nothing can be."""
    await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_MOVE_LOCK,))
    for segment in old:
        await _run(connection, "LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE", segment)
    await _run(
        connection,
        "DELETE FROM {table} n WHERE NOT EXISTS "
        "(SELECT FROM embeddings e WHERE e.segment = ANY({old}) AND e.text_id = n.text_id)",
        merged,
        old,
    )
    await _run(
        connection,
        "INSERT INTO {table} (text_id, segment, embedding) "
        "SELECT text_id, {segment}, embedding FROM embeddings e WHERE e.segment = ANY({old}) "
        "AND NOT EXISTS (SELECT FROM {table} n WHERE n.text_id = e.text_id)",
        merged,
        old,
    )


async def _index(connection: AsyncConnection, segment: int, rows: int) -> None:
    await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    # A graph that has no room in memory is built ten times slower.
    memory = max(_LEAST_MEMORY, rows * _BYTES_A_ROW) >> 10
    await connection.execute(
        text("SELECT set_config('maintenance_work_mem', :memory, true)"), {"memory": f"{memory}kB"}
    )
    neighbours = M_LARGE if rows > LARGE_ROWS else M
    await connection.execute(
        text("SELECT index_segment(:segment, :m, :ef)"),
        {"segment": segment, "m": neighbours, "ef": EF_CONSTRUCTION},
    )


async def _attach(connection: AsyncConnection, segment: int) -> None:
    await connection.execute(text("SELECT attach_segment(:segment)"), {"segment": segment})


async def _run(
    connection: AsyncConnection, statement: LiteralString, segment: int, old: list[int] | None = None
) -> int:
    """Runs a statement on a segment's table, which can't be a parameter; how many rows it touched."""
    composed = sql.SQL(statement).format(
        table=sql.Identifier(_table(segment)),
        segment=sql.Literal(segment),
        old=sql.Literal(old or []),
    )
    return (await connection.exec_driver_sql(composed.as_string())).rowcount


async def _wait_at_most(connection: AsyncConnection, seconds: float) -> None:
    await connection.execute(
        text("SELECT set_config('lock_timeout', :wait, true)"), {"wait": f"{round(seconds * 1000)}"}
    )


async def _try_lock(connection: AsyncConnection, number: int) -> bool:
    found = await connection.exec_driver_sql("SELECT pg_try_advisory_xact_lock(%s)", (number,))
    return bool(found.scalar_one())


def _table(segment: int) -> str:
    return f"embeddings_{segment}"
