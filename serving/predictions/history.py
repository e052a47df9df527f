"""Use cases over what is stored: predictions again, and feedback on them.

Knows no HTTP and no SQL. A caller with a scope sees only that holder's predictions and the texts in them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from db.predictions.feedback import Judgement, NewFeedback
from db.predictions.predictions import Prediction, PredictionFilters, PredictionPage
from db.predictions.submissions import Mismatch, NewIdempotency, Replayed
from serving.core.caller import Caller, Idempotency
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict
from serving.predictions.service import Answer
from serving.privacy.masking import BodyLocation, TextMasker

_COMMENT = BodyLocation(("body", "comment"), many=False)


class PredictionRecords(Protocol):
    """The stored predictions."""

    async def get(self, prediction_id: UUID, *, holder: UUID | None = None) -> Prediction:
        """One, with its feedback."""

    async def list(
        self,
        filters: PredictionFilters | None = None,
        *,
        holder: UUID | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> PredictionPage:
        """A page of them, newest first."""


class FeedbackRecords(Protocol):
    """The stored judgements."""

    async def put(
        self,
        feedback: NewFeedback,
        *,
        scope: UUID | None = None,
        idempotency: NewIdempotency | None = None,
        render: Callable[[Judgement], bytes] | None = None,
    ) -> Judgement | Replayed | Mismatch:
        """Store or replace one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """A judgement as a caller gives it."""

    prediction_id: UUID
    is_correct: bool
    label: str | None = None
    comment: str | None = None
    idempotency: Idempotency | None = None


class PredictionHistoryService:
    """What was acknowledged can be read and judged by its holder and by engineers alone."""

    def __init__(
        self,
        *,
        predictions: PredictionRecords,
        feedback: FeedbackRecords,
        privacy: TextMasker | None = None,
    ) -> None:
        self._predictions = predictions
        self._feedback = feedback
        self._privacy = privacy

    async def prediction(self, prediction_id: UUID, caller: Caller) -> Prediction:
        """Raises NotFound."""
        with translate_database_errors():
            return await self._predictions.get(prediction_id, holder=caller.scope)

    async def predictions(
        self, filters: PredictionFilters, caller: Caller, *, limit: int, cursor: str | None
    ) -> PredictionPage:
        """Raises Invalid if the cursor isn't one that a page gave."""
        with translate_database_errors():
            return await self._predictions.list(filters, holder=caller.scope, limit=limit, cursor=cursor)

    async def judge(self, feedback: Feedback, caller: Caller, render: Callable[[Judgement], bytes]) -> Answer:
        """Store a judgement, or replace this holder's earlier one.

        Raises:
            NotFound: no such prediction, or not the caller's.
            Conflict: the idempotency key stands for another body.
            Invalid: there is personal data in the comment, and it is refused.
        """
        comment = feedback.comment
        if comment is not None and self._privacy is not None:
            (comment,) = await self._privacy.admit([comment], _COMMENT)
        new = NewFeedback(
            prediction_id=feedback.prediction_id,
            holder_id=caller.holder_id,
            key_id=caller.key_id,
            is_correct=feedback.is_correct,
            label=feedback.label,
            comment=comment,
        )
        claim = None
        if feedback.idempotency is not None:
            claim = NewIdempotency(
                holder_id=caller.holder_id,
                route=feedback.idempotency.route,
                key=feedback.idempotency.key,
                body_digest=feedback.idempotency.body_digest,
                status=201,
                answer=b"",
            )
        with translate_database_errors():
            outcome = await self._feedback.put(new, scope=caller.scope, idempotency=claim, render=render)
        if isinstance(outcome, Mismatch):
            raise Conflict("this Idempotency-Key was used with another body: use a new key for a new request")
        if isinstance(outcome, Replayed):
            return Answer(status=outcome.status, body=outcome.answer, timing=None, replayed=True)
        return Answer(status=201, body=render(outcome), timing=None)
