"""In-memory stands-in for the borders of this layer: the replicas and the database.

For tests without PostgreSQL or Ray. They keep the promises of what they stand for, and nothing after the
process ends.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from db.accounts.keys import Key, NewKey
from db.accounts.users import User
from db.core.binary import Vector
from db.core.ids import uuid7_time
from db.errors import Duplicate, NotFound, Rejected, Unavailable
from db.predictions.feedback import Judgement, NewFeedback
from db.predictions.idempotency import StoredAnswer
from db.predictions.predictions import Prediction, PredictionFilters, PredictionPage
from db.predictions.submissions import (
    Mismatch,
    NewIdempotency,
    NewPrediction,
    NewText,
    Outcome,
    Replayed,
    Stored,
    Submission,
)
from db.schema.tables import DIMENSIONS
from db.search.similarity import SimilarityFilters
from registry.bundles.bundle import LABELS
from serving.errors import ModelNotReady
from serving.inference.dispatcher import Inference, InferenceItem

_WORDS = {"good": 2, "great": 2, "love": 2, "bad": 0, "broke": 0, "hate": 0}
_LONGEST = 2_000


def vector_of(text: str) -> NDArray[np.float32]:
    """A unit vector [384]: texts that share words are near each other."""
    seeds = [
        int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") for word in text.lower().split()
    ]
    total = np.stack([np.random.default_rng(seed).standard_normal(DIMENSIONS) for seed in seeds]).sum(axis=0)
    return np.asarray(total / np.linalg.norm(total), np.float32)


class FakeEncoderClient:
    """Answers by a handful of words; `fault`, while it is set, is every text's result."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fault: Exception | None = None
        self.broken_versions: set[str] = set()

    async def infer(self, items: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        """One batch."""
        self.batches.append(len(items))
        return [self.fault or self._fault(item) or self._one(item.text) for item in items]

    def _fault(self, item: InferenceItem) -> Exception | None:
        broken = item.record is not None and item.record.version in self.broken_versions
        return ModelNotReady("its head is broken") if broken else None

    def _one(self, text: str) -> Inference:
        top = next((_WORDS[word] for word in text.lower().split() if word in _WORDS), 1)
        scores = [0.1, 0.1, 0.1]
        scores[top] = 0.8
        return Inference(
            scores=(scores[0], scores[1], scores[2]),
            embedding=vector_of(text).astype("<f2").tobytes(),
            tokens=len(text.split()),
            truncated=len(text) > _LONGEST,
        )


class FakeBatchObserver:
    """Watches a batcher and keeps what it saw: each batch's size, and the waiting weight."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.waiting = 0

    def observe_batch(self, items: int, seconds: float) -> None:
        self.batches.append(items)

    def observe_waiting(self, weight: int) -> None:
        self.waiting = weight


class FakeStore:
    """A database of one process: the writer, and the lookups that the prediction path makes.

    While `down` is set everything raises Unavailable.
    """

    def __init__(self) -> None:
        self.down = False
        self.texts: dict[UUID, NewText] = {}
        self.predictions: dict[UUID, NewPrediction] = {}
        self.feedback: dict[tuple[UUID, UUID], Judgement] = {}
        self.answers: dict[tuple[UUID, str, str], StoredAnswer] = {}
        self.users: dict[UUID, User] = {}
        self.keys: dict[UUID, Key] = {}
        self.acts: list[tuple[UUID | None, str]] = []

    def reach(self) -> None:
        """Raises Unavailable while the store is down."""
        if self.down:
            raise Unavailable("the fake store is down")

    def claim(self, new: NewIdempotency | None) -> Replayed | Mismatch | None:
        """What stands for an idempotency key; None: it is the caller's now."""
        if new is None:
            return None
        name = (new.holder_id, new.route, new.key)
        if name in self.answers:
            return self.answers[name].outcome(new.body_digest)
        self.answers[name] = StoredAnswer(body_digest=new.body_digest, status=new.status, answer=new.answer)
        return None

    async def commit(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """The writer's part."""
        self.reach()
        return [self._store(submission) for submission in submissions]

    async def find(self, holder_id: UUID, route: str, key: str) -> StoredAnswer | None:
        """The idempotency rows' part."""
        self.reach()
        return self.answers.get((holder_id, route, key))

    def remembered(self, row: NewPrediction) -> Prediction:
        """A prediction as it is read again."""
        return Prediction(
            id=row.id,
            text_id=row.text_id,
            text=self.texts[row.text_id].content,
            user_id=row.user_id,
            key_id=row.key_id,
            holder_id=row.holder_id,
            model=row.model,
            version=row.version,
            arm=row.arm,
            experiment_id=row.experiment_id,
            unit=row.unit,
            label=row.label,
            confidence=row.confidence,
            scores=dict(zip(LABELS, row.scores, strict=True)),
            request_id=row.request_id,
            truncated=row.truncated,
            queue_ms=row.queue_ms,
            infer_ms=row.infer_ms,
            feedback=tuple(given for (judged, _), given in self.feedback.items() if judged == row.id),
        )

    def vector(self, text_id: UUID) -> Vector:
        """The stored vector of a text."""
        return np.frombuffer(self.texts[text_id].embedding, "<f2").astype(np.float32)

    def visible(self, holder: UUID | None) -> list[Prediction]:
        """All predictions of a holder, or of everybody, newest first."""
        rows = (row for row in self.predictions.values() if holder in (None, row.holder_id))
        return [self.remembered(row) for row in sorted(rows, key=lambda row: row.id, reverse=True)]

    def _store(self, submission: Submission) -> Outcome:
        standing = self.claim(submission.idempotency)
        if standing is not None:
            return standing
        for text in submission.texts:
            self.texts.setdefault(text.id, text)
        self.predictions.update({prediction.id: prediction for prediction in submission.predictions})
        return Stored()


class FakeUserRepository:
    """The users of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def create(self, *, username: str, email: str, actor: UUID | None) -> User:
        """Add a user."""
        self._store.reach()
        for user in self._store.users.values():
            if username.lower() == user.username.lower() or email.lower() == user.email.lower():
                raise Duplicate("a user with this name or address exists already")
        user = User(id=uuid4(), username=username, email=email, created_at=datetime.now(UTC))
        self._store.users[user.id] = user
        self._store.acts.append((actor, f"user.create {user.id}"))
        return user

    async def get(self, user_id: UUID) -> User:
        """One user."""
        self._store.reach()
        if user_id not in self._store.users:
            raise NotFound(f"there is no user {user_id}")
        return self._store.users[user_id]

    async def exists(self, user_id: UUID) -> bool:
        """Whether there is such a user."""
        self._store.reach()
        return user_id in self._store.users


class FakeKeyRepository:
    """The keys of a fake store; `looked_up` counts what no cache answered."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.looked_up = 0

    async def create(self, new: NewKey, *, actor: UUID | None) -> Key:
        """Add a key."""
        self._store.reach()
        if new.owner_id is not None and new.owner_id not in self._store.users:
            raise NotFound(f"there is no user {new.owner_id}")
        key = Key(
            id=new.id,
            owner_id=new.owner_id,
            digest=new.digest,
            role=new.role,
            name=new.name,
            rate_limit=new.rate_limit,
            created_at=datetime.now(UTC),
            expires_at=new.expires_at,
            revoked_at=None,
            last_used_at=None,
        )
        self._store.keys[key.id] = key
        self._store.acts.append((actor, f"key.create {key.id}"))
        return key

    async def find(self, key_id: UUID) -> Key | None:
        """The key as it is now."""
        self._store.reach()
        self.looked_up += 1
        return self._store.keys.get(key_id)

    async def list(self, *, owner_id: UUID | None = None) -> tuple[Key, ...]:
        """All keys, oldest first."""
        self._store.reach()
        return tuple(key for key in self._store.keys.values() if owner_id in (None, key.owner_id))

    async def revoke(self, key_id: UUID, *, actor: UUID | None) -> Key:
        """End a key."""
        self._store.reach()
        key = self._store.keys.get(key_id)
        if key is None:
            raise NotFound(f"there is no key {key_id}")
        self._store.acts.append((actor, f"key.revoke {key_id}"))
        self._store.keys[key_id] = ended = replace(key, revoked_at=key.revoked_at or datetime.now(UTC))
        return ended

    async def touch(self, used: Mapping[UUID, datetime]) -> None:
        """Note when keys were last used."""
        self._store.reach()
        for key_id, at in used.items():
            self._store.keys[key_id] = replace(self._store.keys[key_id], last_used_at=at)


class FakePredictionRepository:
    """The stored predictions of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def get(self, prediction_id: UUID, *, holder: UUID | None = None) -> Prediction:
        """One, with its feedback."""
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
        """A page of them, newest first."""
        self._store.reach()
        try:
            before = UUID(cursor) if cursor is not None else UUID(int=2**128 - 1)
        except ValueError:
            raise Rejected("the cursor isn't one that an earlier page gave") from None
        wanted = filters or PredictionFilters()
        found = [each for each in self._store.visible(holder) if each.id < before and _listed(each, wanted)]
        more = len(found) > limit
        return PredictionPage(
            items=tuple(found[:limit]), next_cursor=str(found[limit - 1].id) if more else None
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
        """Store or replace one."""
        self._store.reach()
        row = self._store.predictions.get(feedback.prediction_id)
        if row is None or scope not in (None, row.holder_id):
            raise NotFound(f"there is no prediction {feedback.prediction_id}")
        standing = self._store.claim(idempotency)
        if standing is not None:
            return standing
        name = (feedback.prediction_id, feedback.holder_id)
        now = datetime.now(UTC)
        earlier = self._store.feedback.get(name)
        self._store.feedback[name] = given = Judgement(
            prediction_id=feedback.prediction_id,
            holder_id=feedback.holder_id,
            is_correct=feedback.is_correct,
            label=feedback.label,
            comment=feedback.comment,
            created_at=earlier.created_at if earlier else now,
            updated_at=now,
        )
        if idempotency is not None and render is not None:
            self._store.answers[(idempotency.holder_id, idempotency.route, idempotency.key)] = StoredAnswer(
                body_digest=idempotency.body_digest, status=idempotency.status, answer=render(given)
            )
        return given


def _listed(prediction: Prediction, filters: PredictionFilters) -> bool:
    return (
        filters.model in (None, prediction.model)
        and filters.arm in (None, prediction.arm)
        and _matches(prediction, filters)
    )


def fits(prediction: Prediction, filters: SimilarityFilters) -> bool:
    """Whether a prediction makes its text fit."""
    judged = any(filters.is_correct in (None, given.is_correct) for given in prediction.feedback)
    return _matches(prediction, filters) and (filters.is_correct is None or judged)


def _matches(prediction: Prediction, filters: PredictionFilters | SimilarityFilters) -> bool:
    at = uuid7_time(prediction.id)
    return (
        filters.sentiment in (None, prediction.label)
        and filters.model_version in (None, prediction.version)
        and filters.user_id in (None, prediction.user_id)
        and filters.has_feedback in (None, bool(prediction.feedback))
        and (filters.since is None or at >= filters.since)
        and (filters.until is None or at < filters.until)
    )
