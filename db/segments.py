"""The segments of the vector index: one open for writing, full ones closed and indexed in the background.

Owns partitions of `embeddings` and their HNSW indexes. A vector lies in exactly one segment at every moment,
because each step is one transaction. Never moves a vector.
"""

from typing import Final

from psycopg import sql
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import Database
from db.tables import UNSAMPLED

ROWS: Final = 50_000
M: Final = 16
EF_CONSTRUCTION: Final = 64
_LOCK: Final = 0x56414C_5345_474D
_INDEX_LOCK: Final = 0x56414C_494E_4458


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

    async def index_next(self, *, grace: float = 10.0, memory: str = "256MB") -> int | None:
        """Indexes the oldest closed segment; its id, or None if there is nothing to do or another does it.

        `grace`: seconds since its closing, so that writers which still saw it open have ended. A later one
        would wait for the build, never lose a row.
        """
        async with self._database.begin() as connection:
            if not await _try_lock(connection, _INDEX_LOCK):
                return None
            found = await connection.execute(
                text(
                    "SELECT id FROM segments WHERE space = :space AND state = 'closed' "
                    "AND closed_at <= now() - make_interval(secs => :grace) ORDER BY id LIMIT 1"
                ),
                {"space": self._space, "grace": grace},
            )
            segment = found.scalar_one_or_none()
            if segment is None:
                return None
            await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            await connection.execute(
                text("SELECT set_config('maintenance_work_mem', :memory, true)"), {"memory": memory}
            )
            await connection.exec_driver_sql(
                sql.SQL(
                    "CREATE INDEX {index} ON {table} USING hnsw (embedding halfvec_ip_ops) "
                    "WITH (m = {m}, ef_construction = {ef})"
                )
                .format(
                    index=sql.Identifier(f"ix_{_table(segment)}_hnsw"),
                    table=sql.Identifier(_table(segment)),
                    m=sql.Literal(M),
                    ef=sql.Literal(EF_CONSTRUCTION),
                )
                .as_string()
            )
            await connection.execute(
                text(
                    "UPDATE segments SET state = 'indexed', indexed_at = clock_timestamp(), "
                    "rows = (SELECT count(*) FROM embeddings WHERE segment = :segment) WHERE id = :segment"
                ),
                {"segment": segment},
            )
            return int(segment)

    async def _open(self, connection: AsyncConnection) -> int | None:
        found = await connection.execute(
            text("SELECT id FROM segments WHERE space = :space AND state = 'open'"), {"space": self._space}
        )
        return found.scalar_one_or_none()

    async def _add(self, connection: AsyncConnection) -> int:
        found = await connection.exec_driver_sql("SELECT coalesce(max(id), 0) + 1 FROM segments")
        segment = int(found.scalar_one())
        names = {"name": sql.Identifier(_table(segment)), "segment": sql.Literal(segment)}
        # Made apart and attached: `PARTITION OF` would lock out every reader and writer of the parent.
        for statement in (
            "CREATE TABLE {name} (LIKE embeddings INCLUDING STORAGE)",
            *(
                f"ALTER TABLE {{name}} ALTER COLUMN {each} SET STATISTICS 0"
                for each in UNSAMPLED["embeddings"]
            ),
            "ALTER TABLE embeddings ATTACH PARTITION {name} FOR VALUES IN ({segment})",
        ):
            await connection.exec_driver_sql(sql.SQL(statement).format(**names).as_string())
        await connection.execute(
            text("INSERT INTO segments (id, space, state) VALUES (:id, :space, 'open')"),
            {"id": segment, "space": self._space},
        )
        return segment


async def _try_lock(connection: AsyncConnection, number: int) -> bool:
    found = await connection.exec_driver_sql("SELECT pg_try_advisory_xact_lock(%s)", (number,))
    return bool(found.scalar_one())


def _table(segment: int) -> str:
    return f"embeddings_{segment}"
