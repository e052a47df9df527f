"""The right labels of texts by their latest feedback.

Feedback tells a label by naming it, or by calling the prediction correct. Never writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from sqlalchemy import text

from db.connection.engine import Database
from db.core import binary
from db.core.binary import Vector
from db.schema.tables import DIMENSIONS

_LABEL: Final = "coalesce(f.label, CASE WHEN f.is_correct THEN p.label END)"

_OF_TEXTS: Final[LiteralString] = """
    SELECT DISTINCT ON (p.text_id) p.text_id, {label} AS label
    FROM predictions p JOIN feedback f ON f.prediction_id = p.id
    WHERE p.text_id = ANY(CAST(:ids AS uuid[])) AND p.model = :model AND p.arm <> 'shadow'
        AND {label} IS NOT NULL
        AND (CAST(:holder AS uuid) IS NULL OR p.holder_id = CAST(:holder AS uuid))
    ORDER BY p.text_id, f.updated_at DESC, p.id DESC""".replace("{label}", _LABEL)

_LATEST: Final[LiteralString] = """
    WITH judged AS MATERIALIZED (
        SELECT p.text_id, p.id, f.updated_at, {label} AS label
        FROM (SELECT * FROM feedback ORDER BY prediction_id DESC LIMIT %(most)s) f
        JOIN predictions p ON p.id = f.prediction_id WHERE p.model = %(model)s),
    last AS (
        SELECT DISTINCT ON (text_id) text_id, label FROM judged WHERE label IS NOT NULL
        ORDER BY text_id, updated_at DESC, id DESC)
    SELECT l.text_id, l.label, halfvec_send(e.embedding)
    FROM last l JOIN embeddings e USING (text_id) JOIN segments s ON s.id = e.segment
    WHERE s.space = %(space)s AND s.state <> 'retired' ORDER BY l.text_id""".replace("{label}", _LABEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledText:
    """A text, its vector, float32 [d], and its right label by feedback."""

    text_id: UUID
    vector: Vector
    label: str


class LabelRepository:
    """The latest feedback on a text that tells a label counts, by any holder."""

    def __init__(self, database: Database, *, space: str) -> None:
        self._database = database
        self._space = space

    async def of_texts(
        self, text_ids: Sequence[UUID], *, model: str, holder: UUID | None = None
    ) -> dict[UUID, str]:
        """Return the right label of each text that has one by feedback on this model's predictions."""
        if not text_ids:
            return {}
        parameters = {"ids": list(text_ids), "model": model, "holder": holder}
        async with self._database.begin() as connection:
            rows = await connection.execute(text(_OF_TEXTS), parameters)
            return {row.text_id: row.label for row in rows}

    async def latest(self, model: str, *, most: int) -> Sequence[LabelledText]:
        """Return the texts that the feedback on the `most` latest judged predictions labels."""
        async with self._database.search() as connection:
            cursor = await connection.execute(
                _LATEST, {"model": model, "most": most, "space": self._space}, binary=True
            )
            rows = await cursor.fetchall()
        vectors = binary.decode_vectors([row[2] for row in rows], dimensions=DIMENSIONS)
        return [
            LabelledText(text_id=row[0], vector=vector, label=row[1])
            for row, vector in zip(rows, vectors, strict=True)
        ]
