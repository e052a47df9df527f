"""A bounded sample of the texts of a time window, with their predictions and judgements.

Never writes, and never reads shadows. The results hold texts, so they stay in this process.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from db.connection.engine import Database
from db.connection.repository import OneSpaceRepository, run_sql
from db.core import binary
from db.core.binary import Vector
from db.core.cipher import text_location
from db.core.ids import uuid7_floor
from db.embeddings.vectors import VECTOR_OF
from db.schema.tables import DIMENSIONS, NIL_ID

# About as many predictions of a window are read; of a smaller window all of them.
READ: Final = 20_000
# A model with few of a window's predictions is looked for in so many times as many of them, until enough are found.
_WIDENING: Final = 8
_HASHES: Final = 1 << 64

_COUNT: Final[LiteralString] = "SELECT count(*) FROM predictions WHERE id >= %(low)s AND id < %(high)s"

# Hashed with a seed, the ids of predictions and of texts give random samples that differ between two windows. The
# primary key alone decides which predictions are read, so each of the window is as likely as any other.
_SAMPLE: Final[LiteralString] = """
    WITH drawn AS MATERIALIZED (
        SELECT id FROM predictions WHERE id >= %(low)s AND id < %(high)s
            AND uuid_hash_extended(id, %(seed)s) <= %(ceiling)s::bigint),
    picked AS MATERIALIZED (
        SELECT p.id, p.text_id FROM drawn JOIN predictions p USING (id)
        WHERE p.model = %(model)s AND p.arm <> 'shadow' AND p.text_id <> %(nobody)s),
    chosen AS MATERIALIZED (
        SELECT * FROM (
            SELECT DISTINCT ON (text_id) text_id, id FROM picked ORDER BY text_id, id DESC) latest
        ORDER BY uuid_hash_extended(text_id, %(seed)s) LIMIT %(size)s),
    shown AS (
        SELECT c.id, c.text_id, t.content, p.version, p.label, p.confidence, p.scores, p.supported,
            p.mostly_unknown, judged.text_id IS NOT NULL AS judged, halfvec_send(e.embedding) AS vector, t.sealed
        FROM chosen c
        JOIN predictions p ON p.id = c.id
        JOIN text_inputs t ON t.id = c.text_id
        JOIN LATERAL {vector} ON true
        LEFT JOIN LATERAL (
            SELECT o.text_id FROM predictions o JOIN feedback f ON f.prediction_id = o.id
            WHERE o.text_id = c.text_id AND o.model = %(model)s LIMIT 1) judged ON true)
    SELECT counted.read, shown.* FROM (SELECT count(*) AS read FROM picked) counted
    LEFT JOIN shown ON true ORDER BY shown.id""".replace("{vector}", VECTOR_OF.replace("{text}", "c.text_id"))

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

    `scores` by label; `supported` and `mostly_unknown` are the prediction's own; `judged`: a prediction of this text
    has feedback.
    """

    prediction_id: UUID
    text_id: UUID
    text: str = field(repr=False)
    version: str
    label: str
    confidence: float
    scores: dict[str, float]
    supported: bool | None
    mostly_unknown: bool | None
    judged: bool
    vector: Vector = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How much of a window was seen: `read` of the model's `predictions` there; `exact`: all, so none is estimated."""

    predictions: int
    read: int
    exact: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSample:
    """Texts of a window, in the order of their predictions."""

    texts: Sequence[SampledText]
    coverage: Coverage


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPrediction:
    """A judged prediction of a text; of several holders' judgements the latest."""

    text_id: UUID
    version: str
    is_correct: bool


class WindowRepository(OneSpaceRepository):
    """Samples are random by text and equal for equal seeds; `read`: about how many predictions are read for one.

    A larger window costs a pass over the keys of its predictions as well.
    """

    def __init__(self, database: Database, *, space: str, read: int = READ) -> None:
        super().__init__(database, space=space)
        self._read = read

    async def sample(self, model: str, window: Window, *, size: int, seed: int = 0) -> WindowSample:
        """Return at most `size` texts that the model predicted in the window, without shadows and erased ones.

        None if the window ends before it begins.
        """
        if window.since >= window.until:
            return WindowSample(texts=[], coverage=Coverage(predictions=0, read=0, exact=True))
        parameters = {
            "low": uuid7_floor(window.since),
            "high": uuid7_floor(window.until),
            "model": model,
            "nobody": NIL_ID,
            "space": self._space,
            "seed": seed,
            "size": size,
        }
        [(total,)] = await self._search(_COUNT, parameters)
        share = min(1.0, self._read / max(1, total))
        while True:
            ceiling = int(_HASHES * share) - _HASHES // 2 - 1
            rows = await self._search(_SAMPLE, parameters | {"ceiling": ceiling})
            read = rows[0][0]
            if share == 1 or read >= min(self._read / _WIDENING, 4 * size):
                break
            share = min(1.0, share * _WIDENING)
        coverage = Coverage(predictions=round(read / share), read=read, exact=share == 1)
        return WindowSample(
            texts=self._texts([row[1:] for row in rows if row[1] is not None]), coverage=coverage
        )

    def _texts(self, rows: Sequence[tuple[Any, ...]]) -> list[SampledText]:
        vectors = binary.decode_vectors([row[10] for row in rows], dimensions=DIMENSIONS)
        return [
            SampledText(
                prediction_id=row[0],
                text_id=row[1],
                text=self._database.cipher.read(text_location(row[1]), row[2], row[11]),
                version=row[3],
                label=row[4],
                confidence=row[5],
                scores=row[6],
                supported=row[7],
                mostly_unknown=row[8],
                judged=row[9],
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
