"""Requests and answers of the data plane: predictions, feedback, similar texts, embeddings."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, WithJsonSchema

from db.schema.tables import DIMENSIONS
from serving.api.schemas.fields import (
    TEXT_SCHEMA,
    WHOLE,
    Body,
    Comment,
    Moment,
    Name,
    Sentiment,
    Shape,
    Text,
    Texts,
)
from serving.core.texts import MAX_BATCH

Arm = Literal["champion", "challenger", "shadow", "named"]


class _PredictOptions(Body):
    user_id: UUID | None = Field(None, description="the user the texts are of; must exist")
    model: Name | None = Field(None, description="the model that answers; default: the platform's")
    version: Name | None = Field(None, description="the version that answers; default: by the traffic split")
    unit: Name | None = Field(None, description="what sticks to an arm of an experiment; default: the user")
    return_embedding: bool = Field(False, description="answer with the vectors, too")


class PredictRequest(_PredictOptions):
    """One text to be judged and remembered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "The battery lasts for days."}]})

    text: Text
    explain: bool = Field(False, description="answer with a second opinion, too, by the nearest judged texts")


class PredictBatchRequest(_PredictOptions):
    """Up to a thousand texts to be judged and remembered together."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["The battery lasts for days.", "It broke at once."]}]}
    )

    texts: Texts


class Scores(Shape):
    """Probabilities; they add up to 1."""

    negative: float
    neutral: float
    positive: float


class PredictionAnswer(Shape):
    """A prediction, stored. `truncated` is there, and true, if the text was longer than the encoder reads."""

    id: UUID
    text_id: UUID
    sentiment: Sentiment
    confidence: float
    scores: Scores
    model: str
    model_version: str
    arm: Arm
    experiment_id: UUID | None
    user_id: UUID | None
    predicted_at: AwareDatetime
    truncated: Literal[True] = True
    embedding: list[float] = Field(default=[], description="if asked for")


class PredictBatchAnswer(Shape):
    """Predictions in the order of the texts."""

    predictions: list[PredictionAnswer]


class FeedbackAnswer(Shape):
    """A judgement as it stands."""

    prediction_id: UUID
    is_correct: bool
    label: Sentiment | None
    comment: str | None
    created_at: AwareDatetime
    updated_at: AwareDatetime


class RememberedPrediction(PredictionAnswer):
    """A stored prediction with its text and its feedback."""

    text: str
    feedback: list[FeedbackAnswer]


class PredictionPage(Shape):
    """Predictions, newest first; `next_cursor` continues after them."""

    items: list[RememberedPrediction]
    next_cursor: str | None


class PredictionQuery(Body):
    """What a list of predictions is narrowed to. `since` is included, `until` is not."""

    model_config = ConfigDict(strict=False)

    sentiment: Sentiment | None = None
    model: Name | None = None
    model_version: Name | None = None
    arm: Arm | None = None
    user_id: UUID | None = None
    since: Moment | None = None
    until: Moment | None = None
    has_feedback: bool | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: Name | None = None


class FeedbackRequest(Body):
    """A judgement of a prediction; a later one of the same key holder replaces it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prediction_id": "019a0000-0000-7000-8000-000000000000",
                    "is_correct": False,
                    "label": "negative",
                    "comment": "irony",
                }
            ]
        }
    )

    prediction_id: UUID
    is_correct: bool
    label: Sentiment | None = Field(None, description="the right sentiment")
    comment: Comment | None = None


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


Input = Annotated[
    Texts,
    BeforeValidator(_listed),
    WithJsonSchema(
        {
            "anyOf": [
                TEXT_SCHEMA,
                {"type": "array", "items": TEXT_SCHEMA, "minItems": 1, "maxItems": MAX_BATCH},
            ]
        }
    ),
]


class EmbeddingsRequest(Body):
    """OpenAI's request. Token ids aren't understood; `user` is ignored."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "all-MiniLM-L6-v2", "input": ["a text", "another"]}]}
    )

    input: Input
    model: Name
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=DIMENSIONS, le=DIMENSIONS), WHOLE] | None = None
    user: Name | None = None


class EmbeddingItem(Shape):
    """One vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Shape):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Shape):
    """OpenAI's answer."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingsUsage
