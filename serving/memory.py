"""Use cases over what is stored: predictions again, similar texts, feedback.

Knows no HTTP and no SQL. A caller with a scope sees only that holder's predictions and the texts in them.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.feedback import Judgement, NewFeedback
from db.predictions import Page, Prediction, PredictionFilters
from db.similarity import Neighbours, SimilarityFilters, Vector
from db.submissions import Mismatch, NewIdempotency, Replayed
from serving.caller import Caller, Idempotency
from serving.errors import Conflict, Invalid, Problem
from serving.gateway import Answer, reaching_the_database
from serving.privacy import Place, Privacy

Embed: TypeAlias = Callable[[Sequence[str]], Awaitable[tuple[NDArray[np.float32], int]]]

_COMMENT = Place(("body", "comment"), many=False)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    ) -> Page:
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


class SimilarityIndex(Protocol):
    """The vectors that can be searched."""

    async def search(
        self,
        vector: Vector,
        *,
        k: int = 10,
        filters: SimilarityFilters | None = None,
        holder: UUID | None = None,
        min_similarity: float | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """The nearest texts."""

    async def vector_of_prediction(self, prediction_id: UUID, *, holder: UUID | None = None) -> Vector:
        """The vector of a prediction's text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """A judgement as a caller gives it."""

    prediction_id: UUID
    is_correct: bool
    label: str | None = None
    comment: str | None = None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What similar texts are wanted; exactly one of `text`, `prediction_id` and `embedding` says to what."""

    text: str | None = None
    prediction_id: UUID | None = None
    embedding: Sequence[float] | None = None
    k: int = 10
    filters: SimilarityFilters | None = None
    min_similarity: float | None = None
    exact: bool = False


class Memory:
    """What was acknowledged can be read, searched and judged by its holder and by engineers alone."""

    def __init__(
        self,
        *,
        predictions: PredictionRecords,
        feedback: FeedbackRecords,
        similarity: SimilarityIndex,
        embed: Embed,
        privacy: Privacy | None = None,
    ) -> None:
        self._predictions = predictions
        self._feedback = feedback
        self._similarity = similarity
        self._embed = embed
        self._privacy = privacy

    async def prediction(self, prediction_id: UUID, caller: Caller) -> Prediction:
        """Raises NotFound."""
        with reaching_the_database():
            return await self._predictions.get(prediction_id, holder=caller.scope)

    async def predictions(
        self, filters: PredictionFilters, caller: Caller, *, limit: int, cursor: str | None
    ) -> Page:
        """Raises Invalid if the cursor isn't one that a page gave."""
        bounded = replace(filters, since=_storable(filters.since), until=_storable(filters.until))
        with reaching_the_database():
            return await self._predictions.list(bounded, holder=caller.scope, limit=limit, cursor=cursor)

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
        with reaching_the_database():
            outcome = await self._feedback.put(new, scope=caller.scope, idempotency=claim, render=render)
        if isinstance(outcome, Mismatch):
            raise Conflict("this Idempotency-Key was used with another body: use a new key for a new request")
        if isinstance(outcome, Replayed):
            return Answer(status=outcome.status, body=outcome.answer, timing=None, replayed=True)
        return Answer(status=201, body=render(outcome), timing=None)

    async def similar(self, search: Search, caller: Caller) -> Neighbours:
        """The stored texts nearest in meaning.

        Raises:
            NotFound: no such prediction, or not the caller's.
            Invalid: a vector without a direction.
        """
        vector = await self._vector(search, caller)
        filters = search.filters or SimilarityFilters()
        with reaching_the_database():
            return await self._similarity.search(
                vector,
                k=search.k,
                filters=replace(filters, since=_storable(filters.since), until=_storable(filters.until)),
                holder=caller.scope,
                min_similarity=search.min_similarity,
                exact=search.exact,
            )

    async def _vector(self, search: Search, caller: Caller) -> Vector:
        if search.text is not None:
            vectors, _ = await self._embed([search.text])
            return np.ascontiguousarray(vectors[0], np.float32)
        if search.prediction_id is not None:
            with reaching_the_database():
                return await self._similarity.vector_of_prediction(search.prediction_id, holder=caller.scope)
        return _unit(search.embedding or ())


def _unit(values: Sequence[float]) -> Vector:
    vector = np.asarray(values, np.float64)
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0.0:
        problem = Problem(loc=("body", "embedding"), message="all of its numbers are 0")
        raise Invalid("the embedding can't be compared", [problem])
    # Divided by the largest first, so that no square overflows.
    vector = vector / largest
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _storable(moment: datetime | None) -> datetime | None:
    """Nothing was predicted before the epoch, and no id can stand for an earlier time."""
    return moment if moment is None else max(moment, _EPOCH)
