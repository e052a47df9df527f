"""Use cases of the data plane: predict, embed, find similar, look up, take feedback.

The same for HTTP, its three protocols, jobs and the command line. Knows no HTTP and no SQL; on the prediction path
only the writer commits, and nothing is answered before it has.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import partial
from math import inf
from operator import itemgetter
from typing import Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db import errors as db_errors
from db.idempotency import Kept
from db.ids import TextIds, Uuid7Clock, uuid7_time
from db.submissions import (
    Failed,
    Mismatch,
    NewIdempotency,
    NewPrediction,
    NewText,
    Outcome,
    Replayed,
    Submission,
)
from registry.records import VersionRecord
from serving.batching import Door, Meter, Passage
from serving.catalogue import Catalogue
from serving.errors import Conflict, Invalid, NotFound, Problem, ServingError, StoreUnavailable
from serving.routing import Arm, choose

LABELS = ("negative", "neutral", "positive")
# A request of more texts is bulk: it yields to smaller ones, which wait for none of it.
FEW = 4


class Role(StrEnum):
    """What a key may do; each role includes the ones before it."""

    CLIENT = "client"
    ENGINEER = "engineer"
    ADMIN = "admin"

    def includes(self, other: "Role") -> bool:
        """Whether this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks: a checked key, whom its predictions belong to, and what it may do."""

    key_id: UUID
    holder_id: UUID
    role: Role
    rate_limit: float | None = None

    @property
    def scope(self) -> UUID | None:
        """The holder whose data this caller may see; None: everybody's."""
        return self.holder_id if self.role is Role.CLIENT else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Idempotency:
    """A request that may be sent twice: its key, its route and a digest of its body."""

    key: str
    route: str
    body_digest: bytes

    def kept(self, caller: Caller, *, status: int, answer: bytes) -> NewIdempotency:
        """The row that makes a repetition get this answer."""
        return NewIdempotency(
            holder_id=caller.holder_id,
            route=self.route,
            key=self.key,
            body_digest=self.body_digest,
            status=status,
            answer=answer,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Predict:
    """A request for predictions; the texts are clean (`serving.texts`)."""

    texts: Sequence[str]
    request_id: str
    model: str | None = None
    version: str | None = None
    user_id: UUID | None = None
    unit: str | None = None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One stored answer. `scores` follow `LABELS`; `embedding` is float32 [d] of unit length."""

    id: UUID
    text_id: UUID
    label: str
    confidence: float
    scores: tuple[float, float, float]
    model: str
    version: str
    arm: Arm
    experiment_id: UUID | None
    user_id: UUID | None
    predicted_at: datetime
    truncated: bool
    embedding: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Where the time of a request went, in milliseconds."""

    queue_ms: float
    infer_ms: float
    store_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The rendered answer of a prediction request; `replayed` if an earlier request made it."""

    status: int
    body: bytes = field(repr=False)
    timing: Timing | None
    replayed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One text for one version, or for its vector alone: the door's item."""

    text: str
    record: VersionRecord | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """What a replica says of one text: probabilities of `LABELS`, its vector as float16 bytes, the tokens read."""

    scores: tuple[float, float, float]
    embedding: bytes
    tokens: int
    truncated: bool


class Encoders(Protocol):
    """The replicas, as the gateway sees them."""

    async def infer(self, asks: Sequence[Ask], *, bulk: bool) -> Sequence[Inference | Exception]:
        """One remote call for a batch; a fault of one text is that text's alone. `bulk` lets others go first."""


class Writer(Protocol):
    """The writer, as the gateway sees it."""

    async def commit(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """One transaction for many requests; an outcome for each."""


class IdempotencyRecords(Protocol):
    """Answers that stand for 24 hours, as the gateway sees them."""

    async def find(self, holder_id: UUID, route: str, key: str) -> Kept | None:
        """The answer that stands for this key."""


class UserRecords(Protocol):
    """The users, as the gateway sees them."""

    async def exists(self, user_id: UUID) -> bool:
        """Whether there is such a user."""


Render = Callable[[Sequence[Prediction]], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The sizes of the doors."""

    batch_texts: int = 64
    batches_in_flight: int = 2
    queue_texts: int = 4096
    queue_seconds: float = 2.0
    store_rows: int = 1024
    store_connections: int = 2
    request_seconds: float = 30.0


class Gateway:
    """What is acknowledged is stored; what could not be stored raises."""

    def __init__(
        self,
        *,
        encoders: Encoders,
        writer: Writer,
        idempotency: IdempotencyRecords,
        users: UserRecords,
        catalogue: Callable[[], Catalogue],
        clock: Uuid7Clock,
        text_ids: TextIds,
        default_model: str,
        bounds: Bounds | None = None,
        compute_meter: Meter | None = None,
        bulk_meter: Meter | None = None,
        store_meter: Meter | None = None,
    ) -> None:
        bounds = bounds or Bounds()
        self._idempotency = idempotency
        self._users = users
        self._catalogue = catalogue
        self._clock = clock
        self._text_ids = text_ids
        self._default_model = default_model
        self._known_users: set[UUID] = set()
        self._in_flight: dict[tuple[UUID, str, str], asyncio.Future[None]] = {}

        def compute(*, bulk: bool, longest_wait: float, meter: Meter | None) -> Door[Ask, Inference]:
            return Door(
                partial(encoders.infer, bulk=bulk),
                batch_weight=bounds.batch_texts,
                slots=bounds.batches_in_flight,
                capacity=bounds.queue_texts,
                longest_wait=longest_wait,
                patience=bounds.request_seconds,
                # A long text takes room: a batch is one message, of 4 MiB at most.
                weigh=lambda ask: 1 + len(ask.text) // 2_000,
                meter=meter,
            )

        # Two doors, so that somebody's thousand texts never stand before somebody else's one.
        self._compute = compute(bulk=False, longest_wait=bounds.queue_seconds, meter=compute_meter)
        self._compute_bulk = compute(bulk=True, longest_wait=inf, meter=bulk_meter)
        # Everything here was admitted by the first door, so this one refuses nobody.
        self._store: Door[Submission, Outcome] = Door(
            writer.commit,
            batch_weight=bounds.store_rows,
            slots=bounds.store_connections,
            capacity=2**62,
            patience=bounds.request_seconds,
            weigh=lambda submission: len(submission.predictions),
            meter=store_meter,
        )

    async def close(self) -> None:
        """Answer everybody inside, admit nobody more."""
        await asyncio.gather(self._compute.close(), self._compute_bulk.close())
        await self._store.close()

    def require_room(self) -> None:
        """Nothing, if one text more would be let in: so that a refusal costs next to nothing.

        Raises:
            Overloaded: it would not.
        """
        self._compute.require_room()

    async def predict(self, ask: Predict, caller: Caller, render: Render) -> Answer:
        """Predict, store, then answer with what `render` makes of the predictions.

        Raises:
            Conflict: the idempotency key stands for another body.
            Invalid: unknown user, or a text that the model can't answer.
            NotFound, ModelNotReady: of the model or version.
            Overloaded: no room at the door.
            StoreUnavailable: not stored, so not answered.
        """
        if ask.idempotency is None:
            return await self._predict(ask, caller, render)
        slot = (caller.holder_id, ask.idempotency.route, ask.idempotency.key)
        # A concurrent duplicate at this replica waits here; at another replica PostgreSQL makes it wait.
        while (first := self._in_flight.get(slot)) is not None:
            await asyncio.wait([first])
        done = self._in_flight[slot] = asyncio.get_running_loop().create_future()
        try:
            earlier = await self.replay(ask.idempotency, caller)
            return earlier or await self._predict(ask, caller, render)
        finally:
            del self._in_flight[slot]
            done.set_result(None)

    async def replay(self, idempotency: Idempotency, caller: Caller) -> Answer | None:
        """The answer this request got before, if it was sent before.

        Raises:
            Conflict: the key stands for another body.
        """
        with reaching_the_database():
            kept = await self._idempotency.find(caller.holder_id, idempotency.route, idempotency.key)
        return None if kept is None else _replayed(kept.outcome(idempotency.body_digest))

    async def _predict(self, ask: Predict, caller: Caller, render: Render) -> Answer:
        choice = choose(self._catalogue(), ask.model or self._default_model, ask.version)
        if ask.user_id is not None:
            await self._require_user(ask.user_id)
        computed = await self._computed(ask.texts, choice.record)
        predictions = [
            Prediction(
                id=(prediction_id := self._clock.next()),
                text_id=self._text_ids(text),
                label=LABELS[(top := max(range(3), key=inference.scores.__getitem__))],
                confidence=inference.scores[top],
                scores=inference.scores,
                model=choice.record.model,
                version=choice.record.version,
                arm=choice.arm,
                experiment_id=choice.experiment_id,
                user_id=ask.user_id,
                predicted_at=uuid7_time(prediction_id),
                truncated=inference.truncated,
                embedding=np.frombuffer(inference.embedding, np.float16).astype(np.float32),
            )
            for text, inference in zip(ask.texts, computed.results, strict=True)
        ]
        body = render(predictions)
        submission = Submission(
            texts=list(
                {
                    prediction.text_id: NewText(
                        id=prediction.text_id, content=text, embedding=inference.embedding
                    )
                    for prediction, text, inference in zip(
                        predictions, ask.texts, computed.results, strict=True
                    )
                }.values()
            ),
            predictions=[
                NewPrediction(
                    id=prediction.id,
                    text_id=prediction.text_id,
                    user_id=ask.user_id,
                    key_id=caller.key_id,
                    holder_id=caller.holder_id,
                    model=prediction.model,
                    version=prediction.version,
                    arm=prediction.arm,
                    experiment_id=prediction.experiment_id,
                    unit=ask.unit,
                    label=prediction.label,
                    confidence=prediction.confidence,
                    scores=prediction.scores,
                    request_id=ask.request_id,
                    truncated=prediction.truncated,
                    queue_ms=computed.queue_ms,
                    infer_ms=computed.run_ms,
                )
                for prediction in predictions
            ],
            idempotency=None
            if ask.idempotency is None
            else ask.idempotency.kept(caller, status=201, answer=body),
        )
        with reaching_the_database():
            stored = await self._store.submit([submission])
        outcome = stored.results[0]
        if isinstance(outcome, Failed):
            raise StoreUnavailable(f"the prediction could not be stored: {outcome.error}") from outcome.error
        if isinstance(outcome, (Replayed, Mismatch)):
            return _replayed(outcome)
        timing = Timing(
            queue_ms=computed.queue_ms,
            infer_ms=computed.run_ms,
            store_ms=stored.queue_ms + stored.run_ms,
        )
        return Answer(status=201, body=body, timing=timing)

    async def embed(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Vectors [n, d] of unit length in the index's space and the number of tokens read; stores nothing."""
        found = (await self._computed(texts, None)).results
        vectors = np.frombuffer(b"".join(each.embedding for each in found), np.float16)
        return vectors.reshape(len(texts), -1).astype(np.float32), sum(each.tokens for each in found)

    async def _computed(self, texts: Sequence[str], record: VersionRecord | None) -> Passage[Inference]:
        if len(texts) <= FEW:
            return await self._compute.submit([Ask(text=text, record=record) for text in texts])
        # Like lengths travel together: the less is padded.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        passage = await self._compute_bulk.submit([Ask(text=texts[index], record=record) for index in order])
        results = [
            result for _, result in sorted(zip(order, passage.results, strict=True), key=itemgetter(0))
        ]
        return replace(passage, results=results)

    async def _require_user(self, user_id: UUID) -> None:
        # Users are never deleted (erasure keeps the row), so one that was seen stays known.
        if user_id in self._known_users:
            return
        with reaching_the_database():
            known = await self._users.exists(user_id)
        if not known:
            raise Invalid(
                "the request names an unknown user",
                [Problem(loc=("body", "user_id"), message=f"no user {user_id}: POST /v1/users creates one")],
            )
        self._known_users.add(user_id)


def _replayed(outcome: Replayed | Mismatch) -> Answer:
    if isinstance(outcome, Mismatch):
        raise Conflict("this Idempotency-Key was used with another body: use a new key for a new request")
    return Answer(status=outcome.status, body=outcome.answer, timing=None, replayed=True)


@contextmanager
def reaching_the_database() -> Iterator[None]:
    """Turns the db layer's errors into this layer's."""
    try:
        yield
    except db_errors.DatabaseError as error:
        raise _translate(error) from error


def _translate(error: db_errors.DatabaseError) -> ServingError:
    match error:
        case db_errors.NotFound():
            return NotFound(str(error))
        case db_errors.Duplicate():
            return Conflict(str(error))
        case db_errors.Rejected():
            return Invalid(str(error))
        case _:
            return StoreUnavailable(f"the database can't be used now: {error}", retry_after=2)
