"""A bounded sample of the texts of a time window, with their predictions and judgements.

Never writes, and never reads shadows. The results hold texts, so they stay in this process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from db.connection.engine import Database
from db.connection.repository import OneSpaceRepository, run_sql
from db.core import binary
from db.core.binary import Vector
from db.core.cipher import text_location
from db.core.ids import uuid7_floor
from db.embeddings.vectors import VECTOR_OF
from db.schema.tables import DIMENSIONS

# A window is cut into 100 equal slices, and the first 200 predictions of each are read.
SLICES: Final = 100
PICKED: Final = 200

# The primary key leads to each slice. Ids of texts are keyed hashes; hashed again with a seed they give a random
# sample that differs between two windows.
_SAMPLE: Final[LiteralString] = """
    WITH picked AS MATERIALIZED (
        SELECT p.* FROM unnest(%(lows)s::uuid[], %(highs)s::uuid[]) AS slice (low, high)
        CROSS JOIN LATERAL (
            SELECT id, text_id, model, arm FROM predictions
            WHERE id >= slice.low AND id < slice.high ORDER BY id LIMIT %(picked)s) p),
    chosen AS MATERIALIZED (
        SELECT * FROM (
            SELECT DISTINCT ON (text_id) text_id, id FROM picked
            WHERE model = %(model)s AND arm <> 'shadow' ORDER BY text_id, id DESC) latest
        ORDER BY uuid_hash_extended(text_id, %(seed)s) LIMIT %(size)s)
    SELECT c.id, c.text_id, t.content, p.version, p.label, p.confidence, p.scores, judged.text_id IS NOT NULL,
        halfvec_send(e.embedding), t.sealed
    FROM chosen c
    JOIN predictions p ON p.id = c.id
    JOIN text_inputs t ON t.id = c.text_id
    JOIN LATERAL {vector} ON true
    LEFT JOIN LATERAL (
        SELECT o.text_id FROM predictions o JOIN feedback f ON f.prediction_id = o.id
        WHERE o.text_id = c.text_id AND o.model = %(model)s LIMIT 1) judged ON true
    ORDER BY c.id""".replace("{vector}", VECTOR_OF.replace("{text}", "c.text_id"))

_JUDGED: Final[LiteralString] = """
    SELECT DISTINCT ON (f.prediction_id) p.text_id, p.version, f.is_correct
    FROM predictions p JOIN feedback f ON f.prediction_id = p.id
    WHERE p.text_id = ANY(CAST(:ids AS uuid[])) AND p.model = :model AND p.arm <> 'shadow'
        AND p.id >= CAST(:since AS uuid) AND p.id < CAST(:until AS uuid)
    ORDER BY f.prediction_id, f.updated_at DESC, f.holder_id"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The time [since, until)."""

    since: datetime
    until: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledText:
    """A text with its vector, float32 [d], and its latest prediction among those that were read in the window.

    `scores` by label; `judged`: a prediction of this text has feedback.
    """

    prediction_id: UUID
    text_id: UUID
    text: str = field(repr=False)
    version: str
    label: str
    confidence: float
    scores: dict[str, float]
    judged: bool
    vector: Vector = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPrediction:
    """A judged prediction of a text; of several holders' judgements the latest."""

    text_id: UUID
    version: str
    is_correct: bool


class WindowRepository(OneSpaceRepository):
    """Samples are random by text and equal for equal seeds.

    Each of the window's `slices` is represented by its first `picked` predictions.
    """

    def __init__(self, database: Database, *, space: str, slices: int = SLICES, picked: int = PICKED) -> None:
        super().__init__(database, space=space)
        self._slices = slices
        self._picked = picked

    async def sample(self, model: str, window: Window, *, size: int, seed: int = 0) -> Sequence[SampledText]:
        """Return at most `size` texts that the model predicted in the window; none if it ends before it begins."""
        if window.since >= window.until:
            return []
        step = (window.until - window.since) / self._slices
        bounds = [uuid7_floor(window.since + step * number) for number in range(self._slices)]
        bounds.append(uuid7_floor(window.until))
        parameters = {
            "lows": bounds[:-1],
            "highs": bounds[1:],
            "picked": self._picked,
            "model": model,
            "space": self._space,
            "seed": seed,
            "size": size,
        }
        rows = await self._search(_SAMPLE, parameters)
        vectors = binary.decode_vectors([row[8] for row in rows], dimensions=DIMENSIONS)
        return [
            SampledText(
                prediction_id=row[0],
                text_id=row[1],
                text=self._database.cipher.read(text_location(row[1]), row[2], row[9]),
                version=row[3],
                label=row[4],
                confidence=row[5],
                scores=row[6],
                judged=row[7],
                vector=vector,
            )
            for row, vector in zip(rows, vectors, strict=True)
        ]

    async def list_judged(
        self, model: str, window: Window, text_ids: Sequence[UUID]
    ) -> Sequence[JudgedPrediction]:
        """Return the judged predictions of these texts in the window."""
        if not text_ids or window.since >= window.until:
            return []
        since, until = uuid7_floor(window.since), uuid7_floor(window.until)
        async with self._database.read() as connection:
            rows = await run_sql(
                connection, _JUDGED, ids=list(text_ids), model=model, since=since, until=until
            )
            return [JudgedPrediction(**row._mapping) for row in rows]
