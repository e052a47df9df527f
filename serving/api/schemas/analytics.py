"""Requests and responses about many predictions at once: topics, drift, differences, the review queue."""

from collections.abc import Iterable
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AliasPath, AwareDatetime, BeforeValidator, Field

from serving.analytics.results import ALPHA
from serving.api.schemas.fields import (
    Moment,
    Name,
    QueryParameters,
    ResponseBody,
    Rounded,
    Sentiment,
    Windowed,
)
from serving.api.schemas.search import UpTo100

UpTo50 = Annotated[int, Field(ge=1, le=50)]


class WindowQuery(Windowed, QueryParameters):
    """A model and a time window, by default the last 7 days; `since` is inclusive, `until` exclusive."""

    model: Name | None = None
    since: Moment | None = None
    until: Moment | None = None


class TopicsQuery(WindowQuery):
    """The window, and the largest number of topics."""

    topics: UpTo50 = 12


class ReviewQuery(WindowQuery):
    """The window, and the number of texts."""

    limit: UpTo100 = 20


class DiffQuery(Windowed, QueryParameters):
    """Two versions, the sentiment that each should have predicted, the window, the largest number of clusters."""

    version_from: Name = Field(alias="from")
    version_to: Name = Field(alias="to")
    was: Sentiment | None = None
    now: Sentiment | None = None
    since: Moment | None = None
    until: Moment | None = None
    clusters: UpTo50 = 8


class DriftQuery(WindowQuery):
    """The window (default: the last day) and the reference (default: the 7 days before the window)."""

    windows = (*Windowed.windows, ("reference_since", "reference_until"))

    reference_since: Moment | None = None
    reference_until: Moment | None = None
    limit: UpTo100 = 10


class CoverageResponse(ResponseBody):
    """How much of the window was seen: `read` of the model's `predictions`; `exact`: all of them were read."""

    predictions: int
    read: int
    exact: bool


class VersionAccuracyResponse(ResponseBody):
    """The accuracy of a version by feedback."""

    model_version: str = Field(validation_alias="version")
    judged: int
    right: int
    accuracy: Rounded


class ExampleText(ResponseBody):
    """A text of a sample, and its last prediction in the window."""

    text_id: UUID
    text: str
    prediction_id: UUID
    sentiment: Sentiment = Field(validation_alias="label")
    confidence: Rounded
    model_version: str = Field(validation_alias="version")


def _with_figure(name: str) -> BeforeValidator:
    """Read pairs of a text and a figure, which becomes its member `name`."""

    def read(pairs: Iterable[tuple[Any, float]]) -> list[dict[str, Any]]:
        return [ExampleText.model_validate(text).model_dump() | {name: figure} for text, figure in pairs]

    return BeforeValidator(read)


class TopicExample(ExampleText):
    """A text of a topic, with its cosine to the topic's centre."""

    similarity: Rounded


class TopicResponse(ResponseBody):
    """Texts of similar meaning, the words that set them apart, and their sentiments."""

    texts: int
    share: Rounded
    words: list[str]
    sentiments: dict[Sentiment, int]
    accuracy: list[VersionAccuracyResponse]
    examples: Annotated[list[TopicExample], _with_figure("similarity")]


class TopicsResponse(ResponseBody):
    """The topics of a sample of the window, the largest first."""

    model: str
    since: AwareDatetime = Field(validation_alias=AliasPath("window", "since"))
    until: AwareDatetime = Field(validation_alias=AliasPath("window", "until"))
    coverage: CoverageResponse
    sampled: int
    topics: list[TopicResponse]


class ReviewItem(ExampleText):
    """A text worth judging: its score and the parts of it, each in 0…1."""

    score: Rounded
    uncertainty: Rounded
    density: Rounded
    disagreement: Rounded


class ReviewResponse(ResponseBody):
    """The texts whose feedback would teach most; `candidates` have no feedback, `judged` have some."""

    model: str
    since: AwareDatetime
    until: AwareDatetime
    coverage: CoverageResponse
    candidates: int
    judged: int
    items: list[ReviewItem]


class LastPredictionResponse(ResponseBody):
    """The last prediction of a version for a text."""

    prediction_id: UUID
    sentiment: Sentiment = Field(validation_alias="label")
    confidence: Rounded


class DiffExample(ResponseBody):
    """A text that the versions predict differently."""

    text_id: UUID
    text: str
    predicted_from: LastPredictionResponse = Field(validation_alias="one", serialization_alias="from")
    predicted_to: LastPredictionResponse = Field(validation_alias="other", serialization_alias="to")


class ClusterResponse(ResponseBody):
    """Texts of similar meaning among those that the versions predict differently."""

    texts: int
    words: list[str]
    examples: list[DiffExample]


class DiffResponse(ResponseBody):
    """The number of texts by the first version's sentiment, then by the other's.

    `sampled` of the requested texts are in the clusters. `complete`: both versions' predictions were all read.
    """

    model: str
    version_from: str = Field(serialization_alias="from")
    version_to: str = Field(serialization_alias="to")
    since: AwareDatetime
    until: AwareDatetime
    compared: int
    differing: int
    matrix: dict[Sentiment, dict[Sentiment, int]]
    sampled: int
    clusters: list[ClusterResponse]
    complete: bool


class SentimentMix(ResponseBody):
    """A sample of a window: texts by sentiment, by tenth of the confidence and by version."""

    since: AwareDatetime = Field(validation_alias=AliasPath("window", "since"))
    until: AwareDatetime = Field(validation_alias=AliasPath("window", "until"))
    coverage: CoverageResponse
    sampled: int
    sentiments: dict[Sentiment, int] = Field(validation_alias="labels")
    confidences: list[int]
    confidence: Rounded | None
    versions: dict[str, int]


class EmbeddingDrift(ResponseBody):
    """The squared maximum mean discrepancy and its p-value by permutations; `drifted`: at most 0.01."""

    mmd2: Annotated[float, AfterValidator(lambda mmd2: round(mmd2, 8))]
    bandwidth: Rounded
    p_value: float
    permutations: int
    drifted: Annotated[bool, BeforeValidator(lambda p_value: p_value <= ALPHA)] = Field(
        validation_alias="p_value"
    )


class StabilityResponse(ResponseBody):
    """Population stability indices: below 0.1 steady, above 0.25 a shift; null with fewer than 200 texts on a side."""

    sentiments: Rounded | None
    confidences: Rounded | None


class NovelText(ExampleText):
    """A text of the window, with its cosine to the nearest text of the reference."""

    nearest: Rounded


class DriftResponse(ResponseBody):
    """The difference between a window and a reference, and the texts that are most unlike the reference."""

    model: str
    window: SentimentMix
    reference: SentimentMix
    embeddings: EmbeddingDrift | None
    reason: str | None = Field(description="why `embeddings` is null: which side has too few texts")
    stability: StabilityResponse
    new: Annotated[list[NovelText], _with_figure("nearest")]
