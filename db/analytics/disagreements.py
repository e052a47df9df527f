"""Disagreements of two versions of a model, by their stored predictions, shadows included.

Reads a bounded number of predictions, and never writes. The results hold texts, so they stay in this process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, LiteralString
from uuid import UUID

from db.analytics.windows import Window
from db.connection.engine import Database
from db.connection.repository import OneSpaceRepository
from db.core import binary
from db.core.binary import Vector
from db.core.cipher import text_location
from db.core.ids import uuid7_floor
from db.embeddings.vectors import VECTOR_OF
from db.schema.tables import DIMENSIONS, NIL_ID

# The latest predictions of both versions in the window that are read, and the texts among them that are compared.
SCANNED: Final = 50_000
COMPARED: Final = 10_000

_COMPARE: Final[LiteralString] = """
    WITH scanned AS MATERIALIZED (
        SELECT text_id FROM predictions
        WHERE id >= %(since)s AND id < %(until)s AND model = %(model)s AND version IN (%(one)s, %(other)s)
            AND text_id <> %(nobody)s
        ORDER BY id DESC LIMIT %(scanned)s),
    touched AS MATERIALIZED (SELECT DISTINCT text_id FROM scanned LIMIT %(compared)s),
    pairs AS MATERIALIZED (
        SELECT t.text_id, one.label AS one_label, one.confidence AS one_confidence, one.id AS one_id,
            other.label AS other_label, other.confidence AS other_confidence, other.id AS other_id
        FROM touched t
        JOIN LATERAL (
            SELECT id, label, confidence FROM predictions p
            WHERE p.text_id = t.text_id AND p.model = %(model)s AND p.version = %(one)s
            ORDER BY p.id DESC LIMIT 1) one ON true
        JOIN LATERAL (
            SELECT id, label, confidence FROM predictions p
            WHERE p.text_id = t.text_id AND p.model = %(model)s AND p.version = %(other)s
            ORDER BY p.id DESC LIMIT 1) other ON true),
    counted AS (
        SELECT jsonb_agg(jsonb_build_array(one_label, other_label, texts)) AS cells
        FROM (SELECT one_label, other_label, count(*) AS texts FROM pairs GROUP BY 1, 2) cell),
    chosen AS MATERIALIZED (
        SELECT * FROM pairs WHERE one_label <> other_label
            AND (%(one_label)s::text IS NULL OR one_label = %(one_label)s)
            AND (%(other_label)s::text IS NULL OR other_label = %(other_label)s)
        ORDER BY uuid_hash_extended(text_id, 0) LIMIT %(size)s),
    shown AS (
        SELECT c.*, t.content, t.sealed, halfvec_send(e.embedding) AS vector
        FROM chosen c JOIN text_inputs t ON t.id = c.text_id
        JOIN LATERAL {vector} ON true)
    SELECT counted.cells, (SELECT count(*) FROM scanned), (SELECT count(*) FROM touched), s.text_id, s.content,
        s.vector, s.one_id, s.one_label, s.one_confidence, s.other_id, s.other_label, s.other_confidence,
        s.sealed
    FROM counted LEFT JOIN shown s ON true ORDER BY s.text_id""".replace(
    "{vector}", VECTOR_OF.replace("{text}", "c.text_id")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionAnswer:
    """A version's latest prediction of a text."""

    prediction_id: UUID
    label: str
    confidence: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """A text on which two versions disagree, with its vector, float32 [d]."""

    text_id: UUID
    text: str = field(repr=False)
    vector: Vector = field(repr=False)
    one: VersionAnswer
    other: VersionAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreements:
    """The number of texts for each pair of labels, and a random sample of the requested ones.

    `complete`: every prediction of both versions in the window was read, and every text among them compared.
    """

    matrix: Mapping[tuple[str, str], int]
    differences: Sequence[Disagreement]
    complete: bool


class DisagreementRepository(OneSpaceRepository):
    """Compares the latest predictions of two versions, for texts that either of them predicted in a window."""

    def __init__(
        self, database: Database, *, space: str, scanned: int = SCANNED, compared: int = COMPARED
    ) -> None:
        super().__init__(database, space=space)
        self._scanned = scanned
        self._compared = compared

    async def compare(
        self,
        model: str,
        one: str,
        other: str,
        window: Window,
        *,
        one_label: str | None = None,
        other_label: str | None = None,
        size: int,
    ) -> Disagreements:
        """Return up to `size` texts that `one` labels `one_label` and `other` `other_label`; None: any other label."""
        if window.since >= window.until:
            return Disagreements(matrix={}, differences=[], complete=True)
        parameters = {
            "since": uuid7_floor(window.since),
            "until": uuid7_floor(window.until),
            "scanned": self._scanned,
            "compared": self._compared,
            "nobody": NIL_ID,
            "model": model,
            "one": one,
            "other": other,
            "one_label": one_label,
            "other_label": other_label,
            "size": size,
            "space": self._space,
        }
        rows = await self._search(_COMPARE, parameters)
        cells, scanned, touched = rows[0][:3]
        texts = [row[3:] for row in rows if row[3] is not None]
        vectors = binary.decode_vectors([row[2] for row in texts], dimensions=DIMENSIONS)
        return Disagreements(
            matrix={(first, second): count for first, second, count in cells or ()},
            differences=[
                Disagreement(
                    text_id=row[0],
                    text=self._database.cipher.read(text_location(row[0]), row[1], row[9]),
                    vector=vector,
                    one=VersionAnswer(prediction_id=row[3], label=row[4], confidence=row[5]),
                    other=VersionAnswer(prediction_id=row[6], label=row[7], confidence=row[8]),
                )
                for row, vector in zip(texts, vectors, strict=True)
            ],
            complete=scanned < self._scanned and touched < self._compared,
        )
