"""The use cases of the data plane: predict and embed.

HTTP with its three protocols, jobs and the command line share them. Knows no HTTP and no SQL. On the prediction path
only the writer commits, and a request is answered after that.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.accounts.users import UserRepository
from db.core.ids import TextIds, Uuid7Clock
from db.predictions.idempotency import IdempotencyRepository
from db.predictions.submissions import Failed, Mismatch, NewPrediction, Outcome, Replayed, Stored, Submission
from serving.core.caller import Caller, Idempotency, Role
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.core.tracing import SubmissionWriter
from serving.errors import Conflict, Invalid, ModelNotReady, NotFound, Problem, StoreUnavailable
from serving.inference.batcher import Batcher, BatchObserver, BatchResult
from serving.inference.dispatcher import BatchLimits, Dispatcher, EncoderClient
from serving.predictions.prediction import InferenceResult, Prediction, PredictionFactory, PredictionInput
from serving.predictions.routing import Arm, Choice, Traffic, choose
from serving.predictions.shadow import FaultCounter, ShadowRunner
from serving.privacy.masking import TEXT, BodyLocation, TextMasker


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """The milliseconds a request spent waiting, in inference and in the store."""

    queue_ms: float
    infer_ms: float
    store_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The rendered answer of a prediction request; `replayed` if it is an earlier request's."""

    status: int
    body: bytes = field(repr=False)
    timing: Timing | None
    replayed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """Vectors [n, d] of unit length, and the tokens read.

    `truncated`: which of them stand for the beginning of their text alone. `unknown`: of which text the encoder knows
    less than half of the tokens.
    """

    vectors: NDArray[np.float32]
    truncated: Sequence[bool]
    unknown: Sequence[bool]
    tokens: int


Render = Callable[[Sequence[Prediction]], bytes]


class PredictionService:
    """Stores every prediction before it is acknowledged; raises when it can't.

    Args:
        replicas: returns the client of the encoder with this digest.
        writer: commits the predictions, many requests in one transaction.
        catalog, traffic: return the present values; a request reads each of them once.
        on_version_requested: is called with each version that a request names, and the role of its caller, so that it
            is kept running.
        on_stored: is called with a request's predictions once they are stored.
        observers: returns the observer of the batcher with this name.
        privacy: masks or refuses personal data in texts; None leaves it in.
    """

    def __init__(
        self,
        *,
        replicas: Callable[[str], EncoderClient],
        writer: SubmissionWriter,
        idempotency: IdempotencyRepository,
        users: UserRepository,
        catalog: Callable[[], Catalog],
        traffic: Callable[[], Traffic],
        on_version_requested: Callable[[str, str, Role], None],
        on_stored: Callable[[Sequence[NewPrediction]], None],
        observers: Callable[[str], BatchObserver],
        clock: Uuid7Clock,
        text_ids: TextIds,
        default_model: str,
        limits: BatchLimits,
        privacy: TextMasker | None = None,
    ) -> None:
        self._on_stored = on_stored
        self._privacy = privacy
        self._idempotency = idempotency
        self._users = users
        self._catalog = catalog
        self._traffic = traffic
        self._on_version_requested = on_version_requested
        self._factory = PredictionFactory(clock, text_ids)
        self._default_model = default_model
        self._known_users: set[UUID] = set()
        self._in_flight: dict[tuple[UUID, str, str], asyncio.Future[None]] = {}
        self._dispatcher = Dispatcher(replicas, limits, observers)
        # The dispatcher's batchers have admitted all that comes here, so this one refuses nothing.
        self._store: Batcher[Submission, Outcome] = Batcher(
            writer.commit,
            weigh=lambda submission: len(submission.predictions),
            observer=observers("store"),
            batch_weight=limits.store_rows,
            max_in_flight=limits.store_connections,
            capacity=2**62,
            timeout=limits.request_seconds,
        )
        self.faults = FaultCounter()
        self._shadows = ShadowRunner(self._dispatcher, self._commit, self._factory, self.faults)

    async def close(self) -> None:
        """Admit no request any more; return when each that was admitted has its answer."""
        await self._dispatcher.close()
        await self._shadows.close()
        await self._store.close()

    def require_room(self) -> None:
        """Raise Overloaded unless one more text would be admitted, so that a refusal costs next to nothing."""
        catalog = self._catalog()
        try:
            placement = catalog.placement(catalog.champion(self._default_model))
        except (NotFound, ModelNotReady):
            return
        self._dispatcher.require_room(placement)

    async def predict(self, request: PredictionInput, caller: Caller, render: Render) -> Answer:
        """Predict, store, then answer with the predictions as `render` writes them.

        Raises:
            Conflict: the idempotency key was used with another body.
            Invalid: the user is unknown, or the model can't answer a text.
            NotFound, ModelNotReady: from the model or version.
            Overloaded: a batcher refuses the texts.
            StoreUnavailable: not stored, so not answered.
        """
        if request.idempotency is None:
            return await self._predict(request, caller, render)
        key = (caller.holder_id, request.idempotency.route, request.idempotency.key)
        # A concurrent duplicate at this replica waits here; at another replica PostgreSQL makes it wait.
        while (first := self._in_flight.get(key)) is not None:
            await asyncio.wait([first])
        done = self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            earlier = await self.replay(request.idempotency, caller)
            return earlier or await self._predict(request, caller, render)
        finally:
            del self._in_flight[key]
            done.set_result(None)

    async def replay(self, idempotency: Idempotency, caller: Caller) -> Answer | None:
        """Return the answer this request got before; None if it is new.

        Raises:
            Conflict: the key was used with another body.
        """
        with translate_database_errors():
            kept = await self._idempotency.find(caller.holder_id, idempotency.route, idempotency.key)
        return None if kept is None else replayed_answer(kept.outcome(idempotency.body_digest))

    async def _predict(self, request: PredictionInput, caller: Caller, render: Render) -> Answer:
        if self._privacy is not None:
            request = replace(request, texts=await self._privacy.mask(request.texts, request.location))
        catalog, model = self._catalog(), request.model or self._default_model
        if request.version is not None:
            catalog.entry(model, request.version)
            self._on_version_requested(model, request.version, caller.role)
        choice = choose(catalog, self._traffic(), model, request.version, request.unit_or_user)
        if request.user_id is not None:
            await self._require_user(request.user_id)
        shadow = self._start_shadow(request, caller, choice, catalog)
        answered: list[UUID] = []
        try:
            choice, inferred = await self._infer(request, choice, catalog)
            predictions = self._factory.create(
                request, inferred, choice.record, choice.arm, choice.experiment_id
            )
            body = render(predictions)
            claim = request.idempotency
            kept = None if claim is None else claim.to_row(caller, status=201, answer=body)
            stored = await self._commit(
                self._factory.create_submission(
                    request, caller, predictions, inferred, kept, space=catalog.space
                )
            )
            outcome = stored.results[0]
            if isinstance(outcome, (Replayed, Mismatch)):
                return replayed_answer(outcome)
            answered = [each.id for each in predictions]
        finally:
            if shadow is not None and not shadow.done():
                shadow.set_result(answered)
        timing = Timing(
            queue_ms=inferred.queue_ms, infer_ms=inferred.run_ms, store_ms=stored.queue_ms + stored.run_ms
        )
        return Answer(status=201, body=body, timing=timing)

    async def embed(
        self, texts: Sequence[str], location: BodyLocation = TEXT, *, space: str | None, query: bool = False
    ) -> Embeddings:
        """Return vectors of texts in a space; store nothing.

        `query`: the texts are to find others by.

        Raises:
            ModelNotReady: no running encoder gives vectors of this space.
        """
        if self._privacy is not None:
            texts = await self._privacy.mask(texts, location)
        batch = await self._dispatcher.infer(texts, None, self._catalog().placement_in(space), query=query)
        vectors = np.frombuffer(b"".join(each.embedding for each in batch.results), np.float16)
        return Embeddings(
            vectors=vectors.reshape(len(texts), -1).astype(np.float32),
            truncated=[each.truncated for each in batch.results],
            unknown=[each.unknown for each in batch.results],
            tokens=sum(each.tokens for each in batch.results),
        )

    async def _infer(
        self, request: PredictionInput, choice: Choice, catalog: Catalog
    ) -> tuple[Choice, InferenceResult]:
        """Infer with the chosen version, or with the champion if that is a challenger which fails."""
        try:
            placement = catalog.placement(choice.record)
            return choice, await self._dispatcher.infer(request.texts, choice.record, placement)
        except ModelNotReady:
            if choice.split is not None:
                self.faults.add(choice.split, choice.arm, len(request.texts))
            if choice.arm is not Arm.CHALLENGER:
                raise
        # This answer counts for no arm: the arms would no longer be divided as the split says.
        fallback = Choice(record=catalog.champion(choice.record.model), arm=Arm.CHAMPION)
        placement = catalog.placement(fallback.record)
        return fallback, await self._dispatcher.infer(request.texts, fallback.record, placement)

    def _start_shadow(
        self, request: PredictionInput, caller: Caller, choice: Choice, catalog: Catalog
    ) -> asyncio.Future[Sequence[UUID]] | None:
        if choice.shadow is None or choice.split is None:
            return None
        return self._shadows.start(
            request,
            caller,
            choice.shadow,
            choice.split,
            catalog.placement(choice.shadow),
            champion=catalog.placement(choice.record),
        )

    async def _commit(self, submission: Submission) -> BatchResult[Outcome]:
        with translate_database_errors():
            stored = await self._store.submit([submission])
        if isinstance(outcome := stored.results[0], Failed):
            raise StoreUnavailable(
                "the prediction could not be stored", reason=str(outcome.error)
            ) from outcome.error
        if isinstance(outcome, Stored):
            self._on_stored(submission.predictions)
        return stored

    async def _require_user(self, user_id: UUID) -> None:
        # Users are never deleted (erasure keeps the row), so a known one stays known.
        if user_id in self._known_users:
            return
        with translate_database_errors():
            exists = await self._users.exists(user_id)
        if not exists:
            raise Invalid(
                "the request names an unknown user",
                [Problem(loc=("body", "user_id"), message=f"no user {user_id}: POST /v1/users creates one")],
            )
        self._known_users.add(user_id)


def replayed_answer(outcome: Replayed | Mismatch) -> Answer:
    """Return the stored answer to a repeated request.

    Raises:
        Conflict: the idempotency key was used with another body.
    """
    if isinstance(outcome, Mismatch):
        raise Conflict("this Idempotency-Key was used with another body: use a new key for a new request")
    return Answer(status=outcome.status, body=outcome.answer, timing=None, replayed=True)
