"""Stored predictions: one by its id, and lists by filters.

Never writes one: that is the writer's.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Row, Select, exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.engine import Database
from db.core.cipher import Cipher, text_location
from db.core.ids import uuid7_floor, uuid7_time
from db.errors import NotFound, Rejected
from db.predictions.feedback import Judgement, load_judgements
from db.schema import tables

_P = tables.PredictionRow
_Query: TypeAlias = Select[*tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A stored prediction with its text and its feedback; times in milliseconds."""

    id: UUID
    text_id: UUID
    text: str
    user_id: UUID | None
    key_id: UUID
    holder_id: UUID
    model: str
    version: str
    arm: str
    experiment_id: UUID | None
    unit: str | None
    label: str
    confidence: float
    scores: Mapping[str, float]
    request_id: str
    truncated: bool
    queue_ms: float
    infer_ms: float
    feedback: tuple[Judgement, ...]

    @property
    def predicted_at(self) -> datetime:
        return uuid7_time(self.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionFilters:
    """What a list is narrowed to; None: not by this. `since` is included, `until` is not."""

    sentiment: str | None = None
    model: str | None = None
    model_version: str | None = None
    arm: str | None = None
    user_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    has_feedback: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionPage:
    """Some predictions, newest first, and the cursor that continues after them."""

    items: tuple[Prediction, ...]
    next_cursor: str | None


class PredictionRepository:
    """Predictions as they were committed; `holder` narrows to one owner's, None to nobody's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, prediction_id: UUID, *, holder: UUID | None = None) -> Prediction:
        """One prediction with its feedback.

        Raises:
            NotFound: no such prediction, or another holder's.
        """
        query = _selected().where(_P.id == prediction_id)
        if holder is not None:
            query = query.where(_P.holder_id == holder)
        async with self._database.begin() as connection:
            found = await _load(connection, self._database.cipher, query)
        if not found:
            raise NotFound(f"there is no prediction {prediction_id}")
        return found[0]

    async def list(
        self,
        filters: PredictionFilters | None = None,
        *,
        holder: UUID | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> PredictionPage:
        """A page of at most `limit` predictions, newest first.

        Raises:
            Rejected: the cursor isn't one that a page gave.
        """
        query = _narrowed(_selected(), filters or PredictionFilters())
        if holder is not None:
            query = query.where(_P.holder_id == holder)
        if cursor is not None:
            query = query.where(_P.id < _decoded(cursor))
        async with self._database.read() as connection:
            found = await _load(
                connection, self._database.cipher, query.order_by(_P.id.desc()).limit(limit + 1)
            )
        items = found[:limit]
        return PredictionPage(items=items, next_cursor=_encoded(items[-1].id) if len(found) > limit else None)


def _selected() -> _Query:
    """Predictions with their texts; those whose text was erased only count."""
    query = select(
        _P.id,
        _P.text_id,
        tables.TextInputRow.content.label("text"),
        tables.TextInputRow.sealed,
        _P.user_id,
        _P.key_id,
        _P.holder_id,
        _P.model,
        _P.version,
        _P.arm,
        _P.experiment_id,
        _P.unit,
        _P.label,
        _P.confidence,
        _P.scores,
        _P.request_id,
        _P.truncated,
        _P.queue_ms,
        _P.infer_ms,
    )
    return query.join(tables.TextInputRow, tables.TextInputRow.id == _P.text_id).where(
        _P.text_id != tables.NIL_ID
    )


def _narrowed(query: _Query, filters: PredictionFilters) -> _Query:
    for column, value in (
        (_P.label, filters.sentiment),
        (_P.model, filters.model),
        (_P.version, filters.model_version),
        (_P.arm, filters.arm),
        (_P.user_id, filters.user_id),
    ):
        if value is not None:
            query = query.where(column == value)
    # Bounds on the id, which is the partition key: other months aren't touched.
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
    given = await load_judgements(connection, cipher, [row.id for row in rows])
    return tuple(prediction_from_row(cipher, row._mapping, given.get(row.id, ())) for row in rows)


def prediction_from_row(
    cipher: Cipher, row: Mapping[Any, Any], feedback: tuple[Judgement, ...]
) -> Prediction:
    """The prediction of a row that has its columns, and of the text `text` and `sealed`."""
    values = dict(row)
    values["text"] = cipher.read(text_location(row["text_id"]), row["text"], values.pop("sealed"))
    return Prediction(**values, feedback=feedback)


def _encoded(prediction_id: UUID) -> str:
    return base64.urlsafe_b64encode(prediction_id.bytes).decode().rstrip("=")


def _decoded(cursor: str) -> UUID:
    try:
        return UUID(bytes=base64.b64decode(f"{cursor}==", altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise Rejected("the cursor isn't one that an earlier page gave: leave it out to start anew") from None
