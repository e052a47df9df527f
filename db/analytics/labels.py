"""The right labels of texts by their latest feedback.

Feedback tells a label by naming it, or by calling the prediction correct. Never writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from db.connection.repository import OneSpaceRepository, run_sql
from db.core import binary
from db.core.binary import Vector
from db.embeddings.vectors import VECTOR_OF
from db.schema.tables import DIMENSIONS

# The right label by the feedback `f` on the prediction `p`.
LABEL: Final[LiteralString] = "coalesce(f.label, CASE WHEN f.is_correct THEN p.label END)"

# Of several judgements of one moment, that of the later prediction counts, and then one holder's.
_NEWEST: Final[LiteralString] = "p.text_id, f.updated_at DESC, p.id DESC, f.holder_id"

_OF_TEXTS: Final[LiteralString] = """
    SELECT DISTINCT ON (p.text_id) p.text_id, {label} AS label
    FROM predictions p JOIN feedback f ON f.prediction_id = p.id
    WHERE p.text_id = ANY(CAST(:ids AS uuid[])) AND p.model = :model AND p.arm <> 'shadow'
        AND {label} IS NOT NULL
        AND (CAST(:holder AS uuid) IS NULL OR p.holder_id = CAST(:holder AS uuid))
    ORDER BY {newest}""".replace("{label}", LABEL).replace("{newest}", _NEWEST)

# The latest judged predictions tell which texts; of a text, feedback on an earlier prediction may be newer.
_LATEST: Final[LiteralString] = (
    """
    WITH judged AS MATERIALIZED (
        SELECT DISTINCT p.text_id
        FROM (SELECT * FROM feedback ORDER BY prediction_id DESC LIMIT %(most)s) f
        JOIN predictions p ON p.id = f.prediction_id
        WHERE p.model = %(model)s AND p.arm <> 'shadow' AND p.supported IS NOT FALSE AND {label} IS NOT NULL),
    last AS (
        SELECT DISTINCT ON (p.text_id) p.text_id, {label} AS label
        FROM judged JOIN predictions p USING (text_id) JOIN feedback f ON f.prediction_id = p.id
        WHERE p.model = %(model)s AND p.arm <> 'shadow' AND {label} IS NOT NULL
        ORDER BY {newest})
    SELECT l.text_id, l.label, halfvec_send(e.embedding)
    FROM last l JOIN LATERAL {vector} ON true ORDER BY l.text_id""".replace("{label}", LABEL)
    .replace("{newest}", _NEWEST)
    .replace("{vector}", VECTOR_OF.replace("{text}", "l.text_id"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledText:
    """A text, its vector, float32 [d], and its right label by feedback."""

    text_id: UUID
    vector: Vector
    label: str


class LabelRepository(OneSpaceRepository):
    """The latest feedback on a text that tells a label counts, by any holder."""

    async def of_texts(
        self, text_ids: Sequence[UUID], *, model: str, holder: UUID | None = None
    ) -> dict[UUID, str]:
        """Return the right label of each text that has one by feedback on this model's predictions."""
        if not text_ids:
            return {}
        async with self._database.begin() as connection:
            rows = await run_sql(connection, _OF_TEXTS, ids=list(text_ids), model=model, holder=holder)
            return {row.text_id: row.label for row in rows}

    async def latest(self, model: str, *, most: int) -> Sequence[LabelledText]:
        """Return the texts that the feedback on the `most` latest judged predictions of all models labels.

        Each has the label that `of_texts` gives it. Texts that their version doesn't support are left out.
        """
        rows = await self._search(_LATEST, {"model": model, "most": most, "space": self._space})
        vectors = binary.decode_vectors([row[2] for row in rows], dimensions=DIMENSIONS)
        return [
            LabelledText(text_id=row[0], vector=vector, label=row[1])
            for row, vector in zip(rows, vectors, strict=True)
        ]
