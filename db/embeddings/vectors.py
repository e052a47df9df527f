"""Stored vectors by text, and the texts of predictions. Never compares vectors."""

from collections.abc import Sequence
from typing import Final, LiteralString
from uuid import UUID

from db.connection.repository import OneSpaceRepository, run_sql
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

# The vector `e` of the text whose id takes the place of `{text}`.
VECTOR_OF: Final[LiteralString] = """(
        SELECT embedding FROM embeddings e JOIN segments s ON s.id = e.segment
        WHERE e.text_id = {text} AND s.space = %(space)s LIMIT 1) e"""

_TEXTS: Final[LiteralString] = """
    SELECT id, text_id FROM predictions WHERE id = ANY(CAST(:ids AS uuid[])) AND text_id <> :nobody
        AND (CAST(:holder AS uuid) IS NULL OR holder_id = CAST(:holder AS uuid))"""


class VectorRepository(OneSpaceRepository):
    """The committed vectors of one space; `holder` restricts them to texts in that owner's predictions."""

    async def of_texts(self, text_ids: Sequence[UUID], *, holder: UUID | None = None) -> dict[UUID, Vector]:
        """Return the vector, float32 [d], of each text that has one."""
        if not text_ids:
            return {}
        ids = list(text_ids)
        async with self._database.begin() as connection:
            found = await run_sql(connection, _OF_TEXTS, ids=ids, space=self._space, holder=holder)
            rows = found.all()
        vectors = binary.decode_vectors([bytes(row.vector) for row in rows], dimensions=DIMENSIONS)
        return {row.text_id: vector for row, vector in zip(rows, vectors, strict=True)}

    async def texts_of(
        self, prediction_ids: Sequence[UUID], *, holder: UUID | None = None
    ) -> dict[UUID, UUID]:
        """Return the text of each prediction that exists, isn't erased, and isn't another holder's."""
        if not prediction_ids:
            return {}
        async with self._database.begin() as connection:
            rows = await run_sql(connection, _TEXTS, ids=list(prediction_ids), holder=holder, nobody=NIL_ID)
            return {row.id: row.text_id for row in rows}
