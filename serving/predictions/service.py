"""Use cases of the data plane: predict and embed.

The same for HTTP, its three protocols, jobs and the command line. Knows no HTTP and no SQL; on the prediction path
only the writer commits, and nothing is answered before it has.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.core.ids import TextIds, Uuid7Clock
from db.predictions.idempotency import StoredAnswer
from db.predictions.submissions import Failed, Mismatch, NewPrediction, Outcome, Replayed, Stored, Submission
from serving.core.caller import Caller, Idempotency
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.errors import (
    Conflict,
    Invalid,
    ModelNotReady,
    NotFound,
    Problem,
    StoreUnavailable,
)
from serving.inference.batcher import Batcher, BatchObserver, BatchResult
from serving.inference.dispatcher import BatchLimits, Dispatcher, EncoderClient
from serving.predictions.prediction import InferenceResult, Prediction, PredictionFactory, PredictionInput
from serving.predictions.routing import Arm, Choice, Traffic, choose
from serving.predictions.shadow import Faults, ShadowRunner
from serving.privacy.masking import TEXT, BodyLocation, TextMasker


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


class Writer(Protocol):
    """The writer, as the gateway sees it."""

    async def commit(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """One transaction for many requests; an outcome for each."""


class IdempotencyRecords(Protocol):
    """Answers that stand for 24 hours, as the gateway sees them."""

    async def find(self, holder_id: UUID, route: str, key: str) -> StoredAnswer | None:
        """The answer that stands for this key."""


class UserRecords(Protocol):
    """The users, as the gateway sees them."""

    async def exists(self, user_id: UUID) -> bool:
        """Whether there is such a user."""


Render = Callable[[Sequence[Prediction]], bytes]


class PredictionService:
    """What is acknowledged is stored; what could not be stored raises.

    Args:
        replicas: those of an encoder, by its digest.
        catalog, traffic: as they stand; a request looks at each of them once.
        asked: told of each version that is named, so that it is kept running.
        meter: who watches the door of this name.
        counted: told of predictions once they are stored, a request's at a time.
        privacy: what becomes of personal data in texts; None: it is read and kept.
    """

    def __init__(
        self,
        *,
        replicas: Callable[[str], EncoderClient],
        writer: Writer,
        idempotency: IdempotencyRecords,
        users: UserRecords,
        catalog: Callable[[], Catalog],
        traffic: Callable[[], Traffic],
        asked: Callable[[str, str], None] = lambda _model, _version: None,
        clock: Uuid7Clock,
        text_ids: TextIds,
        default_model: str,
        bounds: BatchLimits | None = None,
        meter: Callable[[str], BatchObserver] | None = None,
        counted: Callable[[Sequence[NewPrediction]], None] = lambda _predictions: None,
        privacy: TextMasker | None = None,
    ) -> None:
        bounds = bounds or BatchLimits()
        self._counted = counted
        self._privacy = privacy
        self._idempotency = idempotency
        self._users = users
        self._catalog = catalog
        self._traffic = traffic
        self._asked = asked
        self._mint = PredictionFactory(clock, text_ids)
        self._default_model = default_model
        self._known_users: set[UUID] = set()
        self._in_flight: dict[tuple[UUID, str, str], asyncio.Future[None]] = {}
        self._compute = Dispatcher(replicas, bounds, meter)
        # Everything here was admitted by the first door, so this one refuses nobody.
        self._store: Batcher[Submission, Outcome] = Batcher(
            writer.commit,
            batch_weight=bounds.store_rows,
            slots=bounds.store_connections,
            capacity=2**62,
            patience=bounds.request_seconds,
            weigh=lambda submission: len(submission.predictions),
            meter=meter("store") if meter else None,
        )
        self.faults = Faults()
        self._shadows = ShadowRunner(self._compute, self._stored, self._mint, self.faults)

    async def close(self) -> None:
        """Answer everybody inside, admit nobody more."""
        await self._compute.close()
        await self._shadows.close()
        await self._store.close()

    def require_room(self) -> None:
        """Nothing, if one text more would be let in: so that a refusal costs next to nothing.

        Raises:
            Overloaded: it would not.
        """
        catalog = self._catalog()
        try:
            place = catalog.placement(catalog.champion(self._default_model))
        except (NotFound, ModelNotReady):
            return
        self._compute.require_room(place)

    async def predict(self, ask: PredictionInput, caller: Caller, render: Render) -> Answer:
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
        with translate_database_errors():
            kept = await self._idempotency.find(caller.holder_id, idempotency.route, idempotency.key)
        return None if kept is None else _replayed(kept.outcome(idempotency.body_digest))

    async def _predict(self, ask: PredictionInput, caller: Caller, render: Render) -> Answer:
        if self._privacy is not None:
            ask = replace(ask, texts=await self._privacy.admit(ask.texts, ask.place))
        catalog, model = self._catalog(), ask.model or self._default_model
        if ask.version is not None:
            catalog.entry(model, ask.version)
            self._asked(model, ask.version)
        choice = choose(catalog, self._traffic(), model, ask.version, ask.sticky)
        if ask.user_id is not None:
            await self._require_user(ask.user_id)
        beside = self._begin_shadow(ask, caller, choice, catalog)
        is_stored = False
        try:
            choice, inferred = await self._inferred(ask, choice, catalog)
            predictions = self._mint.predictions(
                ask, inferred, choice.record, choice.arm, choice.experiment_id
            )
            body = render(predictions)
            claim = ask.idempotency
            kept = None if claim is None else claim.kept(caller, status=201, answer=body)
            stored = await self._stored(
                self._mint.submission(ask, caller, predictions, inferred, kept, space=catalog.space)
            )
            outcome = stored.results[0]
            if isinstance(outcome, (Replayed, Mismatch)):
                return _replayed(outcome)
            is_stored = True
        finally:
            if beside is not None and not beside.done():
                beside.set_result(is_stored)
        timing = Timing(
            queue_ms=inferred.queue_ms,
            infer_ms=inferred.run_ms,
            store_ms=stored.queue_ms + stored.run_ms,
        )
        return Answer(status=201, body=body, timing=timing)

    async def embed(
        self, texts: Sequence[str], place: BodyLocation = TEXT, *, space: str | None
    ) -> tuple[NDArray[np.float32], int]:
        """Vectors [n, d] of unit length in a space and the number of tokens read; stores nothing.

        Raises:
            ModelNotReady: the space isn't the index's, and was it too long ago.
        """
        if self._privacy is not None:
            texts = await self._privacy.admit(texts, place)
        found = (await self._compute.infer(texts, None, self._catalog().placement_in(space))).results
        vectors = np.frombuffer(b"".join(each.embedding for each in found), np.float16)
        return vectors.reshape(len(texts), -1).astype(np.float32), sum(each.tokens for each in found)

    async def _inferred(
        self, ask: PredictionInput, choice: Choice, catalog: Catalog
    ) -> tuple[Choice, InferenceResult]:
        """What the chosen version says, or the champion in the place of a challenger that can't."""
        try:
            place = catalog.placement(choice.record)
            return choice, await self._compute.infer(ask.texts, choice.record, place)
        except ModelNotReady:
            if choice.split is not None:
                self.faults.add(choice.split, choice.arm, len(ask.texts))
            if choice.arm is not Arm.CHALLENGER:
                raise
        # Outside the experiment, whose arms would otherwise not be what the split says.
        instead = Choice(record=catalog.champion(choice.record.model), arm=Arm.CHAMPION)
        place = catalog.placement(instead.record)
        return instead, await self._compute.infer(ask.texts, instead.record, place)

    def _begin_shadow(
        self, ask: PredictionInput, caller: Caller, choice: Choice, catalog: Catalog
    ) -> asyncio.Future[bool] | None:
        if choice.shadow is None or choice.split is None:
            return None
        return self._shadows.begin(
            ask,
            caller,
            choice.shadow,
            choice.split,
            catalog.placement(choice.shadow),
            beside=catalog.placement(choice.record),
        )

    async def _stored(self, submission: Submission) -> BatchResult[Outcome]:
        with translate_database_errors():
            stored = await self._store.submit([submission])
        if isinstance(outcome := stored.results[0], Failed):
            raise StoreUnavailable(f"the prediction could not be stored: {outcome.error}") from outcome.error
        if isinstance(outcome, Stored):
            self._counted(submission.predictions)
        return stored

    async def _require_user(self, user_id: UUID) -> None:
        # Users are never deleted (erasure keeps the row), so one that was seen stays known.
        if user_id in self._known_users:
            return
        with translate_database_errors():
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
