"""Feedback: judgements of predictions, one per holder, replaced by the same holder.

Stores a judgement together with its idempotency row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, literal, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.repository import Repository
from db.core.cipher import Cipher, comment_location
from db.core.rows import columns_of
from db.errors import Contradictory, NotFound
from db.predictions.idempotency import claim, set_answer
from db.predictions.submissions import Mismatch, NewIdempotency, Replayed
from db.schema import tables

_F = tables.FeedbackRow
_P = tables.PredictionRow


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFeedback:
    """A judgement to be stored; `label` is the right one, None if the holder names none."""

    prediction_id: UUID
    holder_id: UUID
    key_id: UUID
    is_correct: bool
    label: str | None = None
    comment: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """A stored judgement."""

    prediction_id: UUID
    holder_id: UUID
    is_correct: bool
    label: str | None
    comment: str | None
    created_at: datetime
    updated_at: datetime


_COLUMNS = (*columns_of(_F, Judgement), _F.sealed)


class FeedbackRepository(Repository):
    """Each holder's latest judgement of each prediction, stored once."""

    async def put(
        self,
        feedback: NewFeedback,
        *,
        scope: UUID | None = None,
        idempotency: NewIdempotency | None = None,
        render: Callable[[Judgement], bytes] | None = None,
    ) -> Judgement | Replayed | Mismatch:
        """Store or replace a judgement, with its idempotency row in the same transaction.

        `scope`: the only holder whose predictions may be judged; None: any holder. `render` makes the answer to a
        repetition from the stored judgement; without it that is `idempotency.answer`.
        Raises NotFound if there is no such prediction, or it is out of scope; Contradictory if the label says the
        opposite of `is_correct`.
        """
        async with self._database.begin() as connection:
            if idempotency is not None:
                earlier = await claim(
                    connection, self._database.cipher, idempotency, names=feedback.prediction_id
                )
                if earlier is not None:
                    return earlier
            stored = await _upsert(connection, self._database.cipher, feedback, scope)
            if idempotency is not None and render is not None:
                await set_answer(connection, self._database.cipher, idempotency, render(stored))
        return stored


async def _upsert(
    connection: AsyncConnection, cipher: Cipher, feedback: NewFeedback, scope: UUID | None
) -> Judgement:
    comment, sealed = feedback.comment, None
    if comment is not None:
        place = comment_location(feedback.prediction_id, feedback.holder_id)
        sealed = cipher.seal(place, comment.encode())
    source = select(
        _P.id,
        literal(feedback.holder_id),
        literal(feedback.key_id),
        literal(feedback.is_correct),
        literal(feedback.label, _F.label.type),
        literal(comment if sealed is None else None, _F.comment.type),
        literal(sealed, _F.sealed.type),
    ).where(_P.id == feedback.prediction_id, _P.text_id != tables.NIL_ID)
    agrees = true() if feedback.label is None else (_P.label == feedback.label) == feedback.is_correct
    if scope is not None:
        source = source.where(_P.holder_id == scope)
    # Waits for a running erasure, and then finds no prediction.
    source = source.with_for_update(read=True, key_share=True)
    columns = ("key_id", "is_correct", "label", "comment", "sealed")
    added = insert(_F).from_select(["prediction_id", "holder_id", *columns], source.where(agrees))
    replaced = {name: added.excluded[name] for name in columns}
    statement = added.on_conflict_do_update(
        index_elements=["prediction_id", "holder_id"], set_={**replaced, "updated_at": func.now()}
    ).returning(*_COLUMNS)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        predicted = (await connection.execute(source.with_only_columns(_P.label))).scalar_one_or_none()
        if predicted is None:
            raise NotFound(f"there is no prediction {feedback.prediction_id}")
        raise Contradictory(contradiction(predicted, feedback))
    return judgement_from_row(cipher, row._mapping)


def contradiction(predicted: str, feedback: NewFeedback) -> str:
    """Return the two readings of feedback that contradicts itself."""
    verdict = f"is_correct {str(feedback.is_correct).lower()} says that {predicted} is "
    return (
        f"{verdict}{'right' if feedback.is_correct else 'wrong'}, and the label says {feedback.label}: "
        "leave one of them out, or send the one that you mean"
    )


async def load_judgements(
    connection: AsyncConnection, cipher: Cipher, prediction_ids: Sequence[UUID]
) -> dict[UUID, tuple[Judgement, ...]]:
    """Return the feedback on each of the predictions, oldest first."""
    if not prediction_ids:
        return {}
    query = select(*_COLUMNS).where(_F.prediction_id.in_(prediction_ids)).order_by(_F.created_at)
    grouped: dict[UUID, tuple[Judgement, ...]] = {}
    for row in await connection.execute(query):
        one = judgement_from_row(cipher, row._mapping)
        grouped[one.prediction_id] = (*grouped.get(one.prediction_id, ()), one)
    return grouped


def judgement_from_row(cipher: Cipher, row: Mapping[Any, Any]) -> Judgement:
    """Return the judgement of a row with its columns and `sealed`."""
    values = dict(row)
    sealed = values.pop("sealed")
    if sealed is not None:
        values["comment"] = cipher.read(comment_location(row["prediction_id"], row["holder_id"]), "", sealed)
    return Judgement(**values)
