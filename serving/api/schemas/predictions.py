"""Requests and responses about predictions and the feedback on them."""

from typing import Annotated, Literal
from uuid import UUID

import numpy as np
from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, WithJsonSchema

from serving.api.schemas.fields import (
    Comment,
    Moment,
    Name,
    PageSize,
    QueryParameters,
    RequestBody,
    ResponseBody,
    Sentiment,
    Text,
    Texts,
    VersionName,
    Windowed,
    is_empty,
    is_none,
    name_examples,
)

ArmName = Literal["champion", "challenger", "shadow", "named"]


def _as_first_answered(stored: float) -> float:
    """Round a stored float32 as its first answer did.

    PostgreSQL returns the shortest decimal, which may round to another sixth decimal.
    """
    return round(float(np.float32(stored)), 6)


StoredScore = Annotated[float, AfterValidator(_as_first_answered)]


class PredictOptions(RequestBody):
    """The options of every prediction."""

    user_id: UUID | None = Field(None, description="the user whom the texts belong to; must exist")
    model: Name | None = Field(None, description="the model that answers; default: the platform's")
    version: VersionName | None = Field(
        None, description="the version that answers; default: by the traffic split"
    )
    unit: Name | None = Field(
        None, description="always gets the same arm of an experiment; default: the user"
    )
    return_embedding: bool = Field(False, description="also return the embedding")


class PredictRequest(PredictOptions):
    """One text to predict and store."""

    model_config = ConfigDict(
        json_schema_extra=name_examples(
            a_text={"text": "The battery lasts for days."},
            one_version={"text": "The battery lasts for days.", "version": "2"},
            a_unit_that_keeps_its_arm={"text": "It broke at once.", "unit": "visitor-4711"},
            with_a_second_opinion={"text": "It broke at once.", "explain": True},
        )
    )

    text: Text
    explain: bool = Field(
        False, description="also return a second opinion, from the nearest texts with feedback"
    )


class PredictBatchRequest(PredictOptions):
    """Up to 1,000 texts to predict and store together."""

    model_config = ConfigDict(
        json_schema_extra=name_examples(
            texts={"texts": ["The battery lasts for days.", "It broke at once."]},
            with_vectors={"texts": ["The battery lasts for days."], "return_embedding": True},
        )
    )

    texts: Texts


class Scores(ResponseBody):
    """Probabilities; they add up to 1."""

    negative: StoredScore
    neutral: StoredScore
    positive: StoredScore


class PredictionResponse(ResponseBody):
    """A stored prediction. `truncated` is present, and true, if the text was longer than the encoder reads.

    `language` is a guess, as a BCP 47 tag, `und` if unsure. A text isn't `supported` if it is surely in a language that
    the version doesn't know, or if it is `mostly_unknown`: present, and true, if the encoder knows less than half of
    its tokens. All three are missing of predictions that are older than they are.
    """

    id: UUID
    text_id: UUID
    sentiment: Sentiment = Field(validation_alias="label")
    confidence: StoredScore
    scores: Scores
    model: str
    model_version: str = Field(validation_alias="version")
    arm: ArmName
    experiment_id: UUID | None
    user_id: UUID | None
    predicted_at: AwareDatetime
    language: str | None = Field(None, exclude_if=is_none)
    supported: bool | None = Field(None, exclude_if=is_none)
    mostly_unknown: Annotated[bool | None, WithJsonSchema({"type": "boolean", "const": True})] = Field(
        True, exclude_if=is_empty
    )
    truncated: Annotated[bool, WithJsonSchema({"type": "boolean", "const": True})] = Field(
        True, exclude_if=is_empty
    )
    embedding: list[float] = Field(default=[], exclude_if=is_empty, description="with return_embedding")


class PredictBatchResponse(ResponseBody):
    """Predictions in the order of the texts."""

    predictions: list[PredictionResponse]


class FeedbackResponse(ResponseBody):
    """The present feedback of one holder on a prediction."""

    prediction_id: UUID
    is_correct: bool
    label: Sentiment | None
    comment: str | None
    created_at: AwareDatetime
    updated_at: AwareDatetime


class StoredPredictionResponse(PredictionResponse):
    """A stored prediction with its text and its feedback."""

    text: str
    feedback: list[FeedbackResponse]


class PredictionListResponse(ResponseBody):
    """Predictions, newest first; `next_cursor` continues after them."""

    items: list[StoredPredictionResponse]
    next_cursor: str | None


class PredictionQuery(Windowed, QueryParameters):
    """Filters of a list of predictions, and its page; `since` is inclusive, `until` exclusive."""

    sentiment: Sentiment | None = None
    model: Name | None = None
    model_version: Name | None = None
    arm: ArmName | None = None
    user_id: UUID | None = None
    since: Moment | None = None
    until: Moment | None = None
    has_feedback: bool | None = None
    limit: PageSize = 50
    cursor: Name | None = None


class FeedbackRequest(RequestBody):
    """Feedback on a prediction; later feedback of the same key holder replaces it."""

    model_config = ConfigDict(
        json_schema_extra=name_examples(
            right={"prediction_id": "019a0000-0000-7000-8000-000000000000", "is_correct": True},
            wrong={
                "prediction_id": "019a0000-0000-7000-8000-000000000000",
                "is_correct": False,
                "label": "negative",
                "comment": "irony",
            },
        )
    )

    prediction_id: UUID
    is_correct: bool
    label: Sentiment | None = Field(None, description="the right sentiment")
    comment: Comment | None = None
