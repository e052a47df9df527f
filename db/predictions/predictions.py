"""Stored predictions: one by its id, and lists by filters.

Never writes one: the writer does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Row, Select, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.repository import Repository
from db.core.cipher import Cipher, text_location
from db.core.cursors import Page, cut_page, decode_uuid, encode_uuid
from db.core.ids import uuid7_floor, uuid7_time
from db.core.rows import columns_of
from db.errors import NotFound
from db.predictions.feedback import Judgement, load_judgements
from db.predictions.submissions import PredictionFields
from db.schema import tables

_P, _T = tables.PredictionRow, tables.TextInputRow
_Query: TypeAlias = Select[*tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction(PredictionFields):
    """A stored prediction with its text and its feedback.

    `language`, `supported` and `mostly_unknown` are None of what was stored before there were such columns.
    """

    language: str | None
    supported: bool | None
    mostly_unknown: bool | None
    text: str
    scores: Mapping[str, float]
    feedback: tuple[Judgement, ...]

    @property
    def predicted_at(self) -> datetime:
        """The time in the id."""
        return uuid7_time(self.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionFilters:
    """The predictions to list: those that match every field that isn't None; `until` is exclusive."""

    sentiment: str | None = None
    model: str | None = None
    model_version: str | None = None
    arm: str | None = None
    user_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    has_feedback: bool | None = None


PredictionPage: TypeAlias = Page[Prediction]


class PredictionRepository(Repository):
    """Committed predictions; `holder` restricts to one owner's, None to no owner's."""

    async def get(self, prediction_id: UUID, *, holder: UUID | None = None) -> Prediction:
        """Return one prediction with its feedback.

        Raises NotFound if there is none, or it is another holder's.
        """
        query = _selected().where(_P.id == prediction_id)
        if holder is not None:
            query = query.where(_P.holder_id == holder)
        async with self._database.begin() as connection:
            predictions = await _load(connection, self._database.cipher, query)
        if not predictions:
            raise NotFound(f"there is no prediction {prediction_id}")
        return predictions[0]

    async def list(
        self,
        filters: PredictionFilters | None = None,
        *,
        holder: UUID | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> PredictionPage:
        """Return a page of at most `limit` predictions, newest first.

        Raises Rejected if no page gave this cursor.
        """
        query = _filtered(_selected(), filters or PredictionFilters())
        if holder is not None:
            query = query.where(_P.holder_id == holder)
        if cursor is not None:
            query = query.where(_P.id < decode_uuid(cursor))
        async with self._database.read() as connection:
            query = query.order_by(_P.id.desc()).limit(limit + 1)
            predictions = await _load(connection, self._database.cipher, query)
        return cut_page(predictions, limit, lambda prediction: encode_uuid(prediction.id))


def _selected() -> _Query:
    """Predictions with their texts, except those whose text was erased: they exist to be counted."""
    query = select(*columns_of(_P, Prediction), _T.content.label("text"), _T.sealed)
    return query.join(_T, _T.id == _P.text_id).where(_P.text_id != tables.NIL_ID)


def _filtered(query: _Query, filters: PredictionFilters) -> _Query:
    for column, value in (
        (_P.label, filters.sentiment),
        (_P.model, filters.model),
        (_P.version, filters.model_version),
        (_P.arm, filters.arm),
        (_P.user_id, filters.user_id),
    ):
        if value is not None:
            query = query.where(column == value)
    # Bounds on the id, the partition key, so that no other month is read.
    if filters.since is not None:
        query = query.where(_P.id >= uuid7_floor(filters.since))
    if filters.until is not None:
        query = query.where(_P.id < uuid7_floor(filters.until))
    if filters.has_feedback is not None:
        judged = exists().where(tables.FeedbackRow.prediction_id == _P.id)
        query = query.where(judged if filters.has_feedback else ~judged)
    return query


async def _load(connection: AsyncConnection, cipher: Cipher, query: _Query) -> tuple[Prediction, ...]:
    rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
    feedback = await load_judgements(connection, cipher, [row.id for row in rows])
    return tuple(prediction_from_row(cipher, row._mapping, feedback.get(row.id, ())) for row in rows)


def prediction_from_row(
    cipher: Cipher, row: Mapping[Any, Any], feedback: tuple[Judgement, ...]
) -> Prediction:
    """Return the prediction of a row with its columns and its text's `text` and `sealed`."""
    values = dict(row)
    values["text"] = cipher.read(text_location(row["text_id"]), row["text"], values.pop("sealed"))
    return Prediction(**values, feedback=feedback)
