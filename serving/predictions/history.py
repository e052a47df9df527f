"""The use cases over stored predictions: read them, and give feedback on them.

Knows no HTTP and no SQL. A caller with a scope sees only that holder's predictions and their texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from db.predictions.feedback import FeedbackRepository, Judgement, NewFeedback
from db.predictions.predictions import Prediction, PredictionFilters, PredictionPage, PredictionRepository
from db.predictions.submissions import Mismatch, Replayed
from serving.core.caller import Caller, Idempotency
from serving.core.database_errors import translate_database_errors
from serving.predictions.service import Answer, replayed_answer
from serving.privacy.masking import BodyLocation, TextMasker

_COMMENT = BodyLocation(("body", "comment"), many=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """A judgement from a caller."""

    prediction_id: UUID
    is_correct: bool
    label: str | None = None
    comment: str | None = None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionHistoryService:
    """Lets the holder of a prediction and engineers, nobody else, read it and give feedback on it."""

    predictions: PredictionRepository
    feedback: FeedbackRepository
    privacy: TextMasker | None = None

    async def get_prediction(self, prediction_id: UUID, caller: Caller) -> Prediction:
        """Return a prediction with its feedback. Raises NotFound."""
        with translate_database_errors():
            return await self.predictions.get(prediction_id, holder=caller.scope)

    async def list_predictions(
        self, filters: PredictionFilters, caller: Caller, *, limit: int, cursor: str | None
    ) -> PredictionPage:
        """Return a page of predictions, newest first. Raises Invalid if the cursor isn't from a page."""
        with translate_database_errors():
            return await self.predictions.list(filters, holder=caller.scope, limit=limit, cursor=cursor)

    async def put_feedback(
        self, feedback: Feedback, caller: Caller, render: Callable[[Judgement], bytes]
    ) -> Answer:
        """Store a judgement, or replace this holder's earlier one.

        Raises:
            NotFound: there is no such prediction, or it isn't the caller's.
            Conflict: the idempotency key was used with another body.
            Invalid: the label contradicts `is_correct`, or the comment holds personal data, which is refused.
        """
        comment = feedback.comment
        if comment is not None and self.privacy is not None:
            (comment,) = await self.privacy.mask([comment], _COMMENT)
        new = NewFeedback(
            prediction_id=feedback.prediction_id,
            holder_id=caller.holder_id,
            key_id=caller.key_id,
            is_correct=feedback.is_correct,
            label=feedback.label,
            comment=comment,
        )
        claim = feedback.idempotency
        kept = None if claim is None else claim.to_row(caller, status=201, answer=b"")
        with translate_database_errors():
            outcome = await self.feedback.put(new, scope=caller.scope, idempotency=kept, render=render)
        if isinstance(outcome, (Replayed, Mismatch)):
            return replayed_answer(outcome)
        return Answer(status=201, body=render(outcome), timing=None)
