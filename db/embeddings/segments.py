"""The segments of the vector index: one open for writing; full ones are closed, indexed and merged.

Owns partitions of `embeddings` and their HNSW indexes. An index is built on a copy that nobody else reads, which then
replaces its sources, so that vectors can be removed meanwhile. Each step is one transaction, so at every moment a
vector lies in exactly one searched segment. Functions of the schema's owner make and drop the tables, so that the
application's role needs to own none.
"""

from typing import Final, LiteralString

from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.engine import Database
from db.connection.repository import run_sql

ROWS: Final = 50_000
M: Final = 16
# Neighbours of a vector in a graph of more than LARGE_ROWS: with 16, a million rows need twice the walk for a recall.
M_LARGE: Final = 24
LARGE_ROWS: Final = 100_000
EF_CONSTRUCTION: Final = 64
FAN_IN: Final = 4
# Memory that building an index takes for a vector of 384 dimensions in half precision.
_BYTES_A_ROW: Final = 1_900
_LEAST_MEMORY: Final = 128 << 20
_LOCK: Final = 0x56414C_5345_474D
_INDEX_LOCK: Final = 0x56414C_494E_4458
_MERGE_LOCK: Final = 0x56414C_4D45_5247
_MOVE_LOCK: Final = 0x56414C_4D4F_5645

# The smallest segments, as many as make the merged one enough larger than its largest part to be worth a new graph.
_MERGEABLE: Final[LiteralString] = """
    SELECT ids FROM (
        SELECT array_agg(id) OVER smaller AS ids, min(rows) OVER smaller AS smallest, rows AS largest,
            sum(rows) OVER smaller AS together
        FROM segments WHERE space = :space AND state = 'indexed' WINDOW smaller AS (ORDER BY rows, id)) sized
    WHERE cardinality(ids) > 1 AND together <= :most
    AND together >= :fan_in * smallest AND (together - largest) * :fan_in >= largest
    ORDER BY together DESC LIMIT 1"""


class Segments:
    """Each space has one open segment; every method is safe at any time, in several processes at once."""

    def __init__(self, database: Database, space: str) -> None:
        self._database = database
        self._space = space

    async def ensure(self) -> int:
        """Return the open segment's id; open the space's first one if there is none."""
        async with self._database.begin() as connection:
            segment = await self._find(connection, "open")
            if segment is None:
                await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                segment = await self._find(connection, "open")
            return segment if segment is not None else await self._add(connection)

    async def roll(self, limit: int = ROWS) -> int | None:
        """Close the open segment if it holds `limit` vectors and open the next; return that one's id, or None."""
        async with self._database.begin() as connection:
            if not await _try_lock(connection, _LOCK):
                return None
            segment = await self._find(connection, "open")
            if segment is None:
                return await self._add(connection)
            counted = await run_sql(
                connection, "SELECT count(*) FROM embeddings WHERE segment = :segment", segment=segment
            )
            rows = int(counted.scalar_one())
            if rows < limit:
                return None
            await run_sql(
                connection,
                "UPDATE segments SET state = 'closed', rows = :rows, closed_at = now() WHERE id = :segment",
                rows=rows,
                segment=segment,
            )
            return await self._add(connection)

    async def index_next(self, *, timeout: float = 0.2) -> int | None:
        """Replace the oldest closed segment by an indexed copy; return its id, or None if there is nothing to do.

        It first waits for writers that saw the segment open: after the copy their vectors would be in no searched
        segment. `timeout`: seconds to wait for them, while other statements queue behind it. Writers never wait for
        the build; an erasure waits for the last statements only.
        Raises Unavailable if the time ran out; try later.
        """
        async with self._database.begin() as connection:
            result = await run_sql(
                connection,
                "SELECT id FROM segments WHERE space = :space AND state = 'closed' ORDER BY id LIMIT 1",
                space=self._space,
            )
            segment: int | None = result.scalar_one_or_none()
            if segment is None:
                return None
            await _set_lock_timeout(connection, timeout)
            # Writers lock the table before they look for the open segment.
            await connection.exec_driver_sql("LOCK TABLE ONLY embeddings IN SHARE MODE")
        await self._reserve()
        async with self._database.begin() as connection:
            if not await _try_lock(connection, _INDEX_LOCK):
                return None
            result = await run_sql(
                connection,
                "SELECT id FROM segments WHERE id = :segment AND state = 'closed'",
                segment=segment,
            )
            if result.scalar_one_or_none() is None:
                return None
            return await self._replace(connection, [segment])

    async def merge_next(self, *, fan_in: int = FAN_IN, memory: int = 1 << 30) -> int | None:
        """Merge the smallest indexed segments; return the new one's id, or None if there is nothing to do.

        Together they hold at least `fan_in` times the smallest, and those other than the largest at least a
        `fan_in`th of the largest. So a search enters few graphs, and a vector is indexed again only about log(n)
        times. `memory`: bytes that a build may take, which bounds a segment. The old segments are retired: searches
        that began before still read them. Writers never wait; an erasure waits for the last statements only.
        """
        sizes = {"space": self._space, "fan_in": fan_in, "most": memory // _BYTES_A_ROW}
        async with self._database.begin() as connection:
            if (await run_sql(connection, _MERGEABLE, **sizes)).one_or_none() is None:
                return None
        await self._reserve()
        async with self._database.begin() as connection:
            if not await _try_lock(connection, _MERGE_LOCK):
                return None
            old: list[int] | None = (await run_sql(connection, _MERGEABLE, **sizes)).scalar_one_or_none()
            return await self._replace(connection, old) if old is not None else None

    async def drop_next(self, *, grace: float = 60.0, timeout: float = 0.2) -> int | None:
        """Drop the oldest retired segment; return its id, or None if there is nothing to do.

        `grace`: least seconds since its retirement, so that the searches that read it have ended. `timeout`: seconds
        to wait for the table, while other statements queue behind it.
        Raises Unavailable if the time ran out; try later.
        """
        async with self._database.begin() as connection:
            # A build reads `embeddings` to its end, and a drop would wait for it.
            for lock in (_MERGE_LOCK, _INDEX_LOCK):
                if not await _try_lock(connection, lock):
                    return None
            result = await run_sql(
                connection,
                "DELETE FROM segments WHERE id = (SELECT id FROM segments WHERE space = :space "
                "AND state = 'retired' AND retired_at <= now() - make_interval(secs => :grace) "
                "ORDER BY id LIMIT 1) RETURNING id",
                space=self._space,
                grace=grace,
            )
            segment: int | None = result.scalar_one_or_none()
            if segment is not None:
                await _set_lock_timeout(connection, timeout)
                await run_sql(connection, "SELECT drop_segment(:segment)", segment=segment)
            return segment

    async def retire(self) -> int:
        """Retire all segments of a leaving space; return how many, 0 while an index is being built."""
        async with self._database.begin() as connection:
            # A segment that is being indexed or merged would be set back to indexed.
            for lock in (_LOCK, _INDEX_LOCK, _MERGE_LOCK):
                if not await _try_lock(connection, lock):
                    return 0
            statement: LiteralString = "DELETE FROM segments WHERE space = :space AND state = 'merging'"
            await run_sql(connection, statement, space=self._space)
            retired = await run_sql(
                connection,
                "UPDATE segments SET state = 'retired', retired_at = clock_timestamp() "
                "WHERE space = :space AND state <> 'retired'",
                space=self._space,
            )
            return retired.rowcount

    async def _find(self, connection: AsyncConnection, state: str) -> int | None:
        statement: LiteralString = "SELECT id FROM segments WHERE space = :space AND state = :state"
        return (await run_sql(connection, statement, space=self._space, state=state)).scalar_one_or_none()

    async def _add(self, connection: AsyncConnection) -> int:
        segment = await _next_id(connection)
        await run_sql(connection, "SELECT make_segment(:segment)", segment=segment)
        await _attach(connection, segment)
        await self._register(connection, segment, "open")
        return segment

    async def _reserve(self) -> None:
        """Register an id for the next copy, unless a killed build left one that no other build uses."""
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            if await self._take_reserved(connection) is None:
                await self._register(connection, await _next_id(connection), "merging")

    async def _take_reserved(self, connection: AsyncConnection) -> int | None:
        """Return a reserved id that belongs to this transaction until it ends, or None."""
        statement: LiteralString = (
            "SELECT id FROM segments WHERE space = :space AND state = 'merging' "
            "ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
        )
        return (await run_sql(connection, statement, space=self._space)).scalar_one_or_none()

    async def _replace(self, connection: AsyncConnection, old: list[int]) -> int | None:
        """Put an indexed copy in the place of these segments; return its id, or None if no id is reserved."""
        copy = await self._take_reserved(connection)
        if copy is None:
            return None
        rows = await _copy(connection, old, copy)
        await _index(connection, copy, rows)
        await _catch_up(connection, old, copy)
        await _attach(connection, copy)
        await run_sql(
            connection,
            "UPDATE segments SET state = 'retired', retired_at = clock_timestamp() WHERE id = ANY(:old)",
            old=old,
        )
        await self._mark_indexed(connection, copy)
        return copy

    async def _mark_indexed(self, connection: AsyncConnection, segment: int) -> None:
        await run_sql(
            connection,
            "UPDATE segments SET state = 'indexed', indexed_at = clock_timestamp(), "
            "rows = (SELECT count(*) FROM embeddings WHERE segment = :segment) WHERE id = :segment",
            segment=segment,
        )

    async def _register(self, connection: AsyncConnection, segment: int, state: str) -> None:
        statement: LiteralString = "INSERT INTO segments (id, space, state) VALUES (:id, :space, :state)"
        await run_sql(connection, statement, id=segment, space=self._space, state=state)


async def prevent_moves(connection: AsyncConnection) -> None:
    """Keep vectors from moving to another segment until the transaction ends; call it before removing vectors.

    A removal that waits for a segment while a copy replaces it doesn't see the copy, and would leave the vector in it.
    """
    await connection.exec_driver_sql("SELECT pg_advisory_xact_lock_shared(%s)", (_MOVE_LOCK,))


async def _next_id(connection: AsyncConnection) -> int:
    result = await connection.exec_driver_sql("SELECT coalesce(max(id), 0) + 1 FROM segments")
    return int(result.scalar_one())


async def _copy(connection: AsyncConnection, old: list[int], copy: int) -> int:
    """Copy the old segments' rows into a new table; return how many."""
    await run_sql(connection, "SELECT make_segment(:segment)", segment=copy)
    await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    copied = await _run(
        connection,
        "INSERT INTO {table} (text_id, segment, embedding) "
        "SELECT text_id, {segment}, embedding FROM embeddings WHERE segment = ANY({old})",
        copy,
        old,
    )
    await run_sql(connection, "SELECT key_segment(:segment)", segment=copy)
    return copied


async def _catch_up(connection: AsyncConnection, old: list[int], copy: int) -> None:
    """Apply what changed in the old segments since the copy, and block further changes."""
    await connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_MOVE_LOCK,))
    for segment in old:
        await _run(connection, "LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE", segment)
    await _run(
        connection,
        "DELETE FROM {table} n WHERE NOT EXISTS "
        "(SELECT FROM embeddings e WHERE e.segment = ANY({old}) AND e.text_id = n.text_id)",
        copy,
        old,
    )
    await _run(
        connection,
        "INSERT INTO {table} (text_id, segment, embedding) "
        "SELECT text_id, {segment}, embedding FROM embeddings e WHERE e.segment = ANY({old}) "
        "AND NOT EXISTS (SELECT FROM {table} n WHERE n.text_id = e.text_id)",
        copy,
        old,
    )


async def _index(connection: AsyncConnection, segment: int, rows: int) -> None:
    await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    # A graph that doesn't fit in memory takes ten times as long to build.
    memory = max(_LEAST_MEMORY, rows * _BYTES_A_ROW) >> 10
    await run_sql(
        connection, "SELECT set_config('maintenance_work_mem', :memory, true)", memory=f"{memory}kB"
    )
    m = M_LARGE if rows > LARGE_ROWS else M
    await run_sql(
        connection, "SELECT index_segment(:segment, :m, :ef)", segment=segment, m=m, ef=EF_CONSTRUCTION
    )


async def _attach(connection: AsyncConnection, segment: int) -> None:
    await run_sql(connection, "SELECT attach_segment(:segment)", segment=segment)


async def _run(
    connection: AsyncConnection, statement: LiteralString, segment: int, old: list[int] | None = None
) -> int:
    """Run a statement on a segment's table, whose name can't be a parameter; return how many rows it changed."""
    composed = sql.SQL(statement).format(
        table=sql.Identifier(f"embeddings_{segment}"),
        segment=sql.Literal(segment),
        old=sql.Literal(old or []),
    )
    return (await connection.exec_driver_sql(composed.as_string())).rowcount


async def _set_lock_timeout(connection: AsyncConnection, seconds: float) -> None:
    wait = f"{round(seconds * 1000)}"
    await run_sql(connection, "SELECT set_config('lock_timeout', :wait, true)", wait=wait)


async def _try_lock(connection: AsyncConnection, number: int) -> bool:
    result = await connection.exec_driver_sql("SELECT pg_try_advisory_xact_lock(%s)", (number,))
    return bool(result.scalar_one())
