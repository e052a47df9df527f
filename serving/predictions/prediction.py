"""Predictions: from a replica's results to the answer and the rows that are stored."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.core.ids import TextIds, Uuid7Clock, uuid7_time
from db.predictions.submissions import NewIdempotency, NewPrediction, NewText, Submission
from registry.bundles.bundle import LABELS
from registry.store.records import VersionRecord
from serving.core.caller import Caller, Idempotency
from serving.core.database_errors import translate_database_errors
from serving.inference.batcher import BatchResult
from serving.inference.dispatcher import Inference
from serving.predictions.routing import Arm
from serving.privacy.masking import TEXTS, BodyLocation

InferenceResult: TypeAlias = BatchResult[Inference]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionInput:
    """A request for predictions. The texts are clean (`serving.core.texts`); `location` is theirs in the body."""

    texts: Sequence[str]
    request_id: str
    model: str | None = None
    version: str | None = None
    user_id: UUID | None = None
    unit: str | None = None
    idempotency: Idempotency | None = None
    location: BodyLocation = TEXTS

    @property
    def unit_or_user(self) -> str:
        """The id that an experiment keeps on one arm: the unit, else the user, else this request."""
        return self.unit or (str(self.user_id) if self.user_id else self.request_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One answer. `scores` follow `LABELS`; `vector` is float16 [d] as bytes, of unit length.

    `supported`: the version may know what the text says. Otherwise it is surely in another language, or
    `mostly_unknown`: the encoder knows less than half of the tokens.
    """

    id: UUID
    text_id: UUID
    text: str = field(repr=False)
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
    language: str
    supported: bool
    mostly_unknown: bool
    vector: bytes = field(repr=False)

    @property
    def embedding(self) -> NDArray[np.float32]:
        """The vector as float32 [d]."""
        return np.frombuffer(self.vector, np.float16).astype(np.float32)


class PredictionFactory:
    """Creates predictions with ascending ids, and the submissions that the writer stores."""

    def __init__(self, clock: Uuid7Clock, text_ids: TextIds) -> None:
        self._clock = clock
        self._text_ids = text_ids

    def create(
        self,
        request: PredictionInput,
        inferred: InferenceResult,
        record: VersionRecord,
        arm: Arm,
        experiment_id: UUID | None,
    ) -> list[Prediction]:
        """Return the predictions of one version for a request, in the order of its texts.

        Raises StoreUnavailable if the clock has passed the last partition.
        """
        with translate_database_errors():
            ids = [self._clock.next() for _ in request.texts]
        return [
            Prediction(
                id=prediction_id,
                text_id=self._text_ids(text),
                text=text,
                label=LABELS[(top := max(range(3), key=inference.scores.__getitem__))],
                confidence=inference.scores[top],
                scores=inference.scores,
                model=record.model,
                version=record.version,
                arm=arm,
                experiment_id=experiment_id,
                user_id=request.user_id,
                predicted_at=uuid7_time(prediction_id),
                truncated=inference.truncated,
                language=inference.language,
                supported=not (inference.foreign or inference.unknown),
                mostly_unknown=inference.unknown,
                vector=inference.embedding,
            )
            for prediction_id, text, inference in zip(ids, request.texts, inferred.results, strict=True)
        ]

    def create_submission(
        self,
        request: PredictionInput,
        caller: Caller,
        predictions: Sequence[Prediction],
        inferred: InferenceResult,
        idempotency: NewIdempotency | None = None,
        *,
        space: str | None = None,
        beside: Sequence[UUID] = (),
    ) -> Submission:
        """Return the rows of a request's predictions, and each of its texts once, with its vector in a space."""
        texts = {
            each.text_id: NewText(id=each.text_id, content=each.text, embedding=each.vector)
            for each in predictions
        }
        return Submission(
            texts=list(texts.values()),
            predictions=[
                NewPrediction(
                    id=each.id,
                    text_id=each.text_id,
                    user_id=each.user_id,
                    key_id=caller.key_id,
                    holder_id=caller.holder_id,
                    model=each.model,
                    version=each.version,
                    arm=each.arm,
                    experiment_id=each.experiment_id,
                    unit=request.unit,
                    label=each.label,
                    confidence=each.confidence,
                    scores=each.scores,
                    request_id=request.request_id,
                    truncated=each.truncated,
                    language=each.language,
                    supported=each.supported,
                    mostly_unknown=each.mostly_unknown,
                    queue_ms=inferred.queue_ms,
                    infer_ms=inferred.run_ms,
                )
                for each in predictions
            ],
            idempotency=idempotency,
            space=space,
            beside=beside,
        )
