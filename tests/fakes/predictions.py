"""Fakes of the writer, the idempotency rows, the predictions and the feedback."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from db.core.cursors import decode_uuid, encode_uuid
from db.core.ids import uuid7_floor
from db.errors import Contradictory, NotFound, Rejected
from db.predictions.feedback import Judgement, NewFeedback, contradiction
from db.predictions.idempotency import StoredAnswer
from db.predictions.predictions import Prediction, PredictionFilters, PredictionPage
from db.predictions.submissions import (
    Dropped,
    Failed,
    Mismatch,
    NewIdempotency,
    NewPrediction,
    Outcome,
    Replayed,
    Stored,
    Submission,
)
from db.schema.tables import DIMENSIONS
from db.search.similarity import SimilarityFilters
from tests.fakes.store import FakeStore

_ARMS = ("champion", "challenger", "shadow", "named")


class FakePredictionWriter:
    """Stores submissions in a fake store, each as a whole and at most once."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def commit(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store submissions; return the outcomes in order."""
        self._store.reach()
        return [self._commit(submission) for submission in submissions]

    def _commit(self, submission: Submission) -> Outcome:
        outcome = self._store.outcome(submission.idempotency)
        if outcome is not None:
            return outcome
        if not self._stand(submission):
            return Dropped()
        texts = {text.id for text in submission.texts}
        if any(
            "\0" in text.content or len(text.embedding) != 2 * DIMENSIONS for text in submission.texts
        ) or not all(self._is_valid(row, texts) for row in submission.predictions):
            return Failed(error=Rejected("the fake store refuses a value"))
        for text in submission.texts:
            self._store.texts.setdefault(text.id, text)
        self._store.predictions.update({row.id: row for row in submission.predictions})
        self._store.keep(submission.idempotency, [row.id for row in submission.predictions])
        return Stored()

    def _stand(self, submission: Submission) -> bool:
        """Return whether the predictions that a submission stands beside are still of its texts."""
        return not submission.beside or all(
            (anchor := self._store.predictions.get(each)) is not None and anchor.text_id == row.text_id
            for each, row in zip(submission.beside, submission.predictions, strict=True)
        )

    def _is_valid(self, row: NewPrediction, texts: set[UUID]) -> bool:
        return (
            row.id not in self._store.predictions
            and (row.text_id in texts or row.text_id in self._store.texts)
            and row.key_id in self._store.keys
            and (row.user_id is None or row.user_id in self._store.users)
            and row.arm in _ARMS
            and 0 <= row.confidence <= 1
        )


class FakeIdempotencyRepository:
    """The stored answers of a fake store; none of them expires."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def find(self, holder_id: UUID, route: str, key: str) -> StoredAnswer | None:
        """Return the answer that is stored for an idempotency key."""
        self._store.reach()
        stored = self._store.answers.get((holder_id, route, key))
        return None if stored is None else stored.answer


class FakePredictionRepository:
    """The predictions of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def get(self, prediction_id: UUID, *, holder: UUID | None = None) -> Prediction:
        """Return one prediction with its feedback."""
        self._store.reach()
        for prediction in self._store.visible(holder):
            if prediction.id == prediction_id:
                return prediction
        raise NotFound(f"there is no prediction {prediction_id}")

    async def list(
        self,
        filters: PredictionFilters | None = None,
        *,
        holder: UUID | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> PredictionPage:
        """Return a page of predictions, newest first."""
        self._store.reach()
        before = None if cursor is None else decode_uuid(cursor)
        filters = filters or PredictionFilters()
        matching = [
            each
            for each in self._store.visible(holder)
            if (before is None or each.id < before)
            and filters.model in (None, each.model)
            and filters.arm in (None, each.arm)
            and _matches(each, filters)
        ]
        items = tuple(matching[:limit])
        return PredictionPage(
            items=items, next_cursor=encode_uuid(items[-1].id) if len(matching) > limit else None
        )


class FakeFeedbackRepository:
    """The judgements of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def put(
        self,
        feedback: NewFeedback,
        *,
        scope: UUID | None = None,
        idempotency: NewIdempotency | None = None,
        render: Callable[[Judgement], bytes] | None = None,
    ) -> Judgement | Replayed | Mismatch:
        """Store a judgement, or replace the same holder's."""
        self._store.reach()
        outcome = self._store.outcome(idempotency)
        if outcome is not None:
            return outcome
        row = self._store.predictions.get(feedback.prediction_id)
        if row is None or scope not in (None, row.holder_id):
            raise NotFound(f"there is no prediction {feedback.prediction_id}")
        if feedback.label is not None and (row.label == feedback.label) is not feedback.is_correct:
            raise Contradictory(contradiction(row.label, feedback))
        if feedback.key_id not in self._store.keys:
            raise Rejected(f"there is no key {feedback.key_id}")
        name = (feedback.prediction_id, feedback.holder_id)
        now = datetime.now(UTC)
        earlier = self._store.feedback.get(name)
        self._store.feedback[name] = judgement = Judgement(
            prediction_id=feedback.prediction_id,
            holder_id=feedback.holder_id,
            is_correct=feedback.is_correct,
            label=feedback.label,
            comment=feedback.comment,
            created_at=earlier.created_at if earlier else now,
            updated_at=now,
        )
        self._store.keep(idempotency, [row.id], None if render is None else render(judgement))
        return judgement


def fits(prediction: Prediction, filters: SimilarityFilters) -> bool:
    """Return whether a prediction makes its text fit."""
    verdicts = [each.is_correct for each in prediction.feedback]
    return _matches(prediction, filters) and (filters.is_correct is None or filters.is_correct in verdicts)


def _matches(prediction: Prediction, filters: PredictionFilters | SimilarityFilters) -> bool:
    return (
        filters.sentiment in (None, prediction.label)
        and filters.model_version in (None, prediction.version)
        and filters.user_id in (None, prediction.user_id)
        and filters.has_feedback in (None, bool(prediction.feedback))
        and (filters.since is None or prediction.id >= uuid7_floor(filters.since))
        and (filters.until is None or prediction.id < uuid7_floor(filters.until))
    )
