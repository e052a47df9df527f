"""Texts that lack a vector of a space: finding them, storing their vectors, and removing a space from them.

A text gets its vector once, even if another process stores or erases it meanwhile. Never embeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from db.connection.repository import OneSpaceRepository
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
# Delays the removal of the space until this transaction ends.
_KEEP_SPACE: Final[LiteralString] = (
    "SELECT FROM spaces WHERE name = %(space)s AND state <> 'leaving' FOR SHARE"
)
# By id, the order in which the writer and an erasure lock them. Texts that were erased meanwhile are gone.
_LOCK: Final[LiteralString] = """
    SELECT FROM text_inputs WHERE id = ANY(%(ids)b::uuid[]) ORDER BY id FOR NO KEY UPDATE"""
_ADD: Final[LiteralString] = """
    WITH added AS (
        UPDATE text_inputs SET spaces = spaces || ARRAY[%(space)s::text]
        WHERE id = ANY(%(ids)b::uuid[]) AND NOT spaces @> ARRAY[%(space)s::text] RETURNING id)
    INSERT INTO embeddings (text_id, segment, embedding)
    SELECT id, (SELECT id FROM segments WHERE space = %(space)s AND state = 'open'), vector
    FROM added JOIN unnest(%(ids)b::uuid[], %(vectors)b::halfvec[]) AS given (id, vector) USING (id)"""
_REMOVE: Final[LiteralString] = """
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
    """The next texts by id: those that lack a vector, and the last id, None if there are no more texts."""

    lacking: Sequence[UUID]
    last: UUID | None


class ReembeddingRepository(OneSpaceRepository):
    """The texts of one space; safe with concurrent writers, erasures and other workers on the same space."""

    async def read_page(self, after: UUID = NIL_ID, *, limit: int) -> TextPage:
        """Read the `limit` texts after an id."""
        rows = await self._read(_PAGE, after=after, limit=limit)
        return TextPage(
            lacking=[row[0] for row in rows if row[1]], last=rows[-1][0] if len(rows) == limit else None
        )

    async def list_recent(self, since: datetime, *, limit: int) -> Sequence[UUID]:
        """Return texts without a vector that have a prediction since then."""
        rows = await self._read(_RECENT, since=uuid7_floor(since), nobody=NIL_ID, limit=limit)
        return [row[0] for row in rows]

    async def read_contents(self, ids: Sequence[UUID]) -> Sequence[tuple[UUID, str]]:
        """Return id and content of those texts that still exist and still lack a vector, by id."""
        rows = await self._read(_CONTENTS, ids=binary.encode_uuids(ids))
        read = self._database.cipher.read
        return sorted((row[0], read(text_location(row[0]), row[1], row[2])) for row in rows)

    async def add_vectors(self, ids: Sequence[UUID], vectors: Sequence[bytes]) -> int:
        """Store vectors of texts, as little-endian float16; return how many texts existed and had none.

        Raises Conflict if the space is leaving.
        """
        values = {
            "space": self._space,
            "ids": binary.encode_uuids(ids),
            "vectors": binary.encode_halfvecs(vectors, dimensions=DIMENSIONS, oid=self._database.halfvec_oid),
        }
        with translate_driver_errors():
            async with self._database.hot_write() as connection, connection.transaction():
                if not (await connection.execute(_KEEP_SPACE, values)).rowcount:
                    raise Conflict(f"the space {self._space!r} is leaving")
                await connection.execute(_LOCK, values)
                return (await connection.execute(_ADD, values)).rowcount

    async def remove_space(self, after: UUID = NIL_ID, *, limit: int) -> UUID | None:
        """Remove the space from the `limit` texts after an id; return the last id, None once there are no more."""
        values = {"space": self._space, "after": after, "limit": limit}
        with translate_driver_errors():
            async with self._database.hot_write() as connection:
                row = await (await connection.execute(_REMOVE, values)).fetchone()
        return None if row is None else row[0]

    async def _read(self, statement: LiteralString, **values: Any) -> list[tuple[Any, ...]]:
        async with self._database.hot_read() as connection:
            cursor = await connection.execute(statement, {"space": self._space, **values})
            return await cursor.fetchall()
