"""A bounded random sample of the stored texts, and texts with feedback, on which a version is evaluated.

Never writes. The results hold texts, so they stay in this process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, LiteralString
from uuid import UUID, uuid4

import numpy as np

from db.analytics.labels import LABEL
from db.connection.repository import OneSpaceRepository
from db.core.binary import Vector
from db.core.cipher import text_location
from db.embeddings.vectors import VECTOR_OF

# Ids of texts are keyed hashes, so the texts that follow a random id are a random sample, read from the index.
_SAMPLE: Final[LiteralString] = """
    WITH drawn AS MATERIALIZED (
        SELECT id FROM (
            (SELECT id FROM text_inputs WHERE id >= %(start)s ORDER BY id LIMIT %(size)s)
            UNION ALL (SELECT id FROM text_inputs WHERE id < %(start)s ORDER BY id LIMIT %(size)s)
        ) ids LIMIT %(size)s
    ),
    judged AS MATERIALIZED (
        SELECT p.text_id FROM feedback f JOIN predictions p ON p.id = f.prediction_id
        WHERE p.model = %(model)s ORDER BY f.prediction_id DESC LIMIT %(judged)s
    ),
    chosen AS MATERIALIZED (SELECT id FROM drawn UNION SELECT text_id FROM judged)
    SELECT t.id, t.content, e.embedding::real[], champion.label, f.label, f.text_id IS NOT NULL, t.sealed
    FROM chosen
    JOIN text_inputs t USING (id)
    JOIN LATERAL {vector} ON true
    LEFT JOIN LATERAL (
        SELECT p.label FROM predictions p
        WHERE p.text_id = t.id AND p.model = %(model)s AND p.arm = 'champion' ORDER BY p.id DESC LIMIT 1
    ) champion ON true
    LEFT JOIN LATERAL (
        SELECT p.text_id, {label} AS label
        FROM predictions p JOIN feedback f ON f.prediction_id = p.id
        WHERE p.text_id = t.id AND p.model = %(model)s ORDER BY f.updated_at DESC, p.id DESC LIMIT 1
    ) f ON true
    ORDER BY t.id""".replace("{vector}", VECTOR_OF.replace("{text}", "t.id")).replace("{label}", LABEL)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredText:
    """A stored text with its vector, float32 [d].

    `label`: a champion's latest, None without one. `corrected`: the right label by the latest feedback, None if that
    tells none: it may only call the prediction wrong. `judged`: there is feedback.
    """

    text_id: UUID
    text: str = field(repr=False)
    vector: Vector = field(repr=False)
    label: str | None
    corrected: str | None
    judged: bool


class ReplayRepository(OneSpaceRepository):
    """The size of a sample bounds its cost, however many texts are stored."""

    async def sample(
        self, model: str, *, size: int, judged: int, start: UUID | None = None
    ) -> Sequence[StoredText]:
        """Return up to `size` random texts and those of the latest `judged` feedbacks; equal `start`, equal texts."""
        parameters = {"start": start or uuid4(), "size": size, "judged": judged, "model": model}
        return [
            StoredText(
                text_id=row[0],
                text=self._database.cipher.read(text_location(row[0]), row[1], row[6]),
                vector=np.array(row[2], np.float32),
                label=row[3],
                corrected=row[4],
                judged=row[5],
            )
            for row in await self._search(_SAMPLE, parameters | {"space": self._space})
        ]
