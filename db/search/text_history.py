"""The histories of texts: the latest prediction of each version, and all feedback.

Reads in the transaction of a search, in one round trip. Never shows a shadow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from psycopg.rows import dict_row

from db.connection.engine import PsycopgConnection
from db.core import binary
from db.core.cipher import Cipher
from db.predictions.feedback import Judgement, judgement_from_row
from db.predictions.predictions import Prediction, prediction_from_row

_VISIBLE: Final[LiteralString] = """
    p.text_id = ANY(%(texts)b::uuid[]) AND p.arm <> 'shadow'
    AND (%(holder)s::uuid IS NULL OR p.holder_id = %(holder)s)"""
_LATEST: Final[LiteralString] = """
    SELECT DISTINCT ON (p.text_id, p.model, p.version)
        p.id, p.text_id, t.content AS text, t.sealed, p.user_id, p.key_id, p.holder_id, p.model, p.version, p.arm,
        p.experiment_id, p.unit, p.label, p.confidence, p.scores, p.request_id, p.truncated,
        p.language, p.supported, p.mostly_unknown, p.queue_ms, p.infer_ms
    FROM predictions p JOIN text_inputs t ON t.id = p.text_id WHERE {visible}
    ORDER BY p.text_id, p.model, p.version, p.id DESC""".replace("{visible}", _VISIBLE)
_JUDGED: Final[LiteralString] = """
    SELECT p.text_id, f.prediction_id, f.holder_id, f.is_correct, f.label, f.comment, f.sealed, f.created_at,
        f.updated_at
    FROM predictions p JOIN feedback f ON f.prediction_id = p.id WHERE {visible}
    ORDER BY p.id, f.created_at""".replace("{visible}", _VISIBLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextHistory:
    """The latest prediction of each version for a text, and all feedback on any of its predictions."""

    predictions: tuple[Prediction, ...]
    feedback: tuple[Judgement, ...]


async def load_histories(
    connection: PsycopgConnection, cipher: Cipher, text_ids: Sequence[UUID], *, holder: UUID | None = None
) -> dict[UUID, TextHistory]:
    """Return the history of each text that has a prediction of `holder`; None: of any holder."""
    parameters = {"texts": binary.encode_uuids(text_ids), "holder": holder}
    latest, judged = connection.cursor(row_factory=dict_row), connection.cursor(row_factory=dict_row)
    await latest.execute(_LATEST, parameters)
    await judged.execute(_JUDGED, parameters)
    rows = await latest.fetchall()
    feedback: dict[UUID, list[Judgement]] = {}
    of_prediction: dict[UUID, list[Judgement]] = {}
    for row in await judged.fetchall():
        text_id = row.pop("text_id")
        judgement = judgement_from_row(cipher, row)
        feedback.setdefault(text_id, []).append(judgement)
        of_prediction.setdefault(judgement.prediction_id, []).append(judgement)
    predictions: dict[UUID, list[Prediction]] = {}
    for row in rows:
        predictions.setdefault(row["text_id"], []).append(
            prediction_from_row(cipher, row, tuple(of_prediction.get(row["id"], ())))
        )
    return {
        text_id: TextHistory(predictions=tuple(latest_predictions), feedback=tuple(feedback.get(text_id, ())))
        for text_id, latest_predictions in predictions.items()
    }
