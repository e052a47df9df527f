"""Stored vectors by text, and the texts of predictions. Never compares vectors."""

from collections.abc import Sequence
from typing import Final, LiteralString
from uuid import UUID

from sqlalchemy import text

from db.connection.engine import Database
from db.core import binary
from db.core.binary import Vector
from db.schema.tables import DIMENSIONS, NIL_ID

# From segments in any state: during a merge the old one is retired already and the new one isn't visible yet.
_OF_TEXTS: Final[LiteralString] = """
    SELECT e.text_id, halfvec_send(e.embedding) AS vector
    FROM embeddings e JOIN segments s ON s.id = e.segment
    WHERE e.text_id = ANY(CAST(:ids AS uuid[])) AND s.space = :space
        AND (CAST(:holder AS uuid) IS NULL OR EXISTS (
            SELECT FROM predictions p
            WHERE p.text_id = e.text_id AND p.holder_id = CAST(:holder AS uuid) AND p.arm <> 'shadow'))"""

_TEXTS: Final[LiteralString] = """
    SELECT id, text_id FROM predictions WHERE id = ANY(CAST(:ids AS uuid[])) AND text_id <> :nobody
        AND (CAST(:holder AS uuid) IS NULL OR holder_id = CAST(:holder AS uuid))"""


class VectorRepository:
    """The committed vectors of one space; `holder` restricts them to texts in that owner's predictions."""

    def __init__(self, database: Database, *, space: str) -> None:
        self._database = database
        self._space = space

    async def of_texts(self, text_ids: Sequence[UUID], *, holder: UUID | None = None) -> dict[UUID, Vector]:
        """Return the vector, float32 [d], of each text that has one."""
        if not text_ids:
            return {}
        parameters = {"ids": list(text_ids), "space": self._space, "holder": holder}
        async with self._database.begin() as connection:
            rows = (await connection.execute(text(_OF_TEXTS), parameters)).all()
        vectors = binary.decode_vectors([bytes(row.vector) for row in rows], dimensions=DIMENSIONS)
        return {row.text_id: vector for row, vector in zip(rows, vectors, strict=True)}

    async def texts_of(
        self, prediction_ids: Sequence[UUID], *, holder: UUID | None = None
    ) -> dict[UUID, UUID]:
        """Return the text of each prediction that exists, isn't erased, and isn't another holder's."""
        if not prediction_ids:
            return {}
        parameters = {"ids": list(prediction_ids), "holder": holder, "nobody": NIL_ID}
        async with self._database.begin() as connection:
            rows = await connection.execute(text(_TEXTS), parameters)
            return {row.id: row.text_id for row in rows}
