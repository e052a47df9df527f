"""Texts that lack a vector of a space, and how they get it; and how a space that leaves is struck off them.

Owns that a text gets its vector once, whoever else stores or erases it meanwhile. Never embeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from db.connection.engine import Database
from db.core import binary
from db.core.cipher import text_location
from db.core.ids import uuid7_floor
from db.errors import Conflict, translate_driver_errors
from db.schema.tables import DIMENSIONS, NIL_ID

_PAGE: Final[LiteralString] = """
    SELECT id, NOT spaces @> ARRAY[%(space)s::text] FROM text_inputs
    WHERE id > %(after)s ORDER BY id LIMIT %(limit)s"""
_RECENT: Final[LiteralString] = """
    SELECT DISTINCT p.text_id FROM predictions p JOIN text_inputs t ON t.id = p.text_id
    WHERE p.id >= %(since)s AND p.text_id <> %(nobody)s AND NOT t.spaces @> ARRAY[%(space)s::text]
    LIMIT %(limit)s"""
_CONTENTS: Final[LiteralString] = """
    SELECT id, content, sealed FROM text_inputs
    WHERE id = ANY(%(ids)b::uuid[]) AND NOT spaces @> ARRAY[%(space)s::text]"""
# Holds off the removal of the space for this transaction.
_STAYS: Final[LiteralString] = "SELECT FROM spaces WHERE name = %(space)s AND state <> 'leaving' FOR SHARE"
# By id, as the writer and an erasure lock them. What an erasure took meanwhile isn't there any more.
_LOCKED: Final[LiteralString] = """
    SELECT FROM text_inputs WHERE id = ANY(%(ids)b::uuid[]) ORDER BY id FOR NO KEY UPDATE"""
_ADDED: Final[LiteralString] = """
    WITH added AS (
        UPDATE text_inputs SET spaces = spaces || ARRAY[%(space)s::text]
        WHERE id = ANY(%(ids)b::uuid[]) AND NOT spaces @> ARRAY[%(space)s::text] RETURNING id)
    INSERT INTO embeddings (text_id, segment, embedding)
    SELECT id, (SELECT id FROM segments WHERE space = %(space)s AND state = 'open'), vector
    FROM added JOIN unnest(%(ids)b::uuid[], %(vectors)b::halfvec[]) AS given (id, vector) USING (id)"""
_STRUCK: Final[LiteralString] = """
    WITH page AS MATERIALIZED (
        SELECT id FROM text_inputs WHERE id > %(after)s ORDER BY id LIMIT %(limit)s),
    held AS MATERIALIZED (
        SELECT t.id FROM text_inputs t JOIN page USING (id)
        WHERE t.spaces @> ARRAY[%(space)s::text] ORDER BY t.id FOR NO KEY UPDATE OF t),
    struck AS (
        UPDATE text_inputs t SET spaces = array_remove(t.spaces, %(space)s) FROM held WHERE t.id = held.id)
    SELECT id FROM page ORDER BY id DESC LIMIT 1"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPage:
    """Of the next texts by id: those that lack a vector, and the last id; None: there are no more."""

    lacking: Sequence[UUID]
    last: UUID | None


class ReembeddingRepository:
    """What is to be done for one space; safe beside writers, erasures and others that do the same."""

    def __init__(self, database: Database, *, space: str) -> None:
        self._database = database
        self._space = space

    async def read_page(self, after: UUID = NIL_ID, *, limit: int) -> TextPage:
        """Looks at the `limit` texts after an id."""
        values = {"space": self._space, "after": after, "limit": limit}
        async with self._database.hot_read() as connection:
            rows = await (await connection.execute(_PAGE, values)).fetchall()
        return TextPage(
            lacking=[row[0] for row in rows if row[1]], last=rows[-1][0] if len(rows) == limit else None
        )

    async def list_recent(self, since: datetime, *, limit: int) -> Sequence[UUID]:
        """Texts without a vector among those that were predicted since then."""
        values = {"space": self._space, "since": uuid7_floor(since), "nobody": NIL_ID, "limit": limit}
        async with self._database.hot_read() as connection:
            return [row[0] for row in await (await connection.execute(_RECENT, values)).fetchall()]

    async def read_contents(self, ids: Sequence[UUID]) -> Sequence[tuple[UUID, str]]:
        """Those of the texts that are still there, and still lack a vector, by id."""
        values = {"space": self._space, "ids": binary.encode_uuids(ids)}
        async with self._database.hot_read() as connection:
            rows = await (await connection.execute(_CONTENTS, values)).fetchall()
        read = self._database.cipher.read
        return sorted((row[0], read(text_location(row[0]), row[1], row[2])) for row in rows)

    async def add(self, ids: Sequence[UUID], vectors: Sequence[bytes]) -> int:
        """Stores the vectors of texts, float16 bytes as the writer's: how many texts had none and are still there.

        Raises:
            Conflict: the space is leaving.
        """
        values = {
            "space": self._space,
            "ids": binary.encode_uuids(ids),
            "vectors": binary.encode_halfvecs(vectors, dimensions=DIMENSIONS, oid=self._database.halfvec_oid),
        }
        with translate_driver_errors():
            async with self._database.hot_write() as connection, connection.transaction():
                if not (await connection.execute(_STAYS, values)).rowcount:
                    raise Conflict(f"the space {self._space!r} is leaving")
                await connection.execute(_LOCKED, values)
                return (await connection.execute(_ADDED, values)).rowcount

    async def remove_space(self, after: UUID = NIL_ID, *, limit: int) -> UUID | None:
        """Strikes the space off the `limit` texts after an id: the last id, None once there are no more."""
        values = {"space": self._space, "after": after, "limit": limit}
        with translate_driver_errors():
            async with self._database.hot_write() as connection:
                row = await (await connection.execute(_STRUCK, values)).fetchone()
        return None if row is None else row[0]
