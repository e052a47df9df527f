"""Requests and answers of what the memory is good for: opinions, corrections, topics, drift, diffs, reviews."""

from typing import Annotated
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, Field

from serving.api.schemas.data import PredictionAnswer
from serving.api.schemas.fields import Body, Moment, Name, Sentiment, Shape
from serving.api.schemas.search import Cosine
from serving.search.service import DUPLICATE_SIMILARITY

Few = Annotated[int, Field(ge=1, le=50)]
Some = Annotated[int, Field(ge=1, le=100)]


class VoiceAnswer(Shape):
    """A judged text nearby, and the sentiment that people hold for right."""

    text_id: UUID
    text: str
    similarity: float
    sentiment: Sentiment


class OpinionAnswer(Shape):
    """The vote of at most 10 judged texts nearby, each by its cosine; null if fewer than 3 have a say.

    `agreement`: the share of the weight that is for the prediction. `complete`: no judged text nearby is missing.
    """

    prediction_id: UUID
    sentiment: Sentiment
    agreement: float | None
    suggests: Sentiment | None
    neighbours: list[VoiceAnswer]
    complete: bool


class ExplainedPrediction(PredictionAnswer):
    """A prediction, stored; with a second opinion if it was asked for, null if none can be had now."""

    second_opinion: OpinionAnswer | None = Field(None, description="with explain")


class CorrectionsQuery(Body):
    """Which texts count as near-duplicates, and how many of them are looked at."""

    model_config = ConfigDict(strict=False)

    min_similarity: Cosine = DUPLICATE_SIMILARITY
    k: Some = 100


class FixAnswer(Shape):
    """A near-duplicate, and the champion's prediction that the correction speaks against."""

    text_id: UUID
    text: str
    similarity: float
    prediction: PredictionAnswer


class CorrectionsAnswer(Shape):
    """What a correction suggests for the near-duplicates of its text.

    Of the `duplicates` the champion says the same of `agreeing`, hasn't judged `unpredicted`, and people have said
    otherwise of `judged`; the rest are `fixes`.
    """

    prediction_id: UUID
    sentiment: Sentiment
    champion: str
    min_similarity: float
    duplicates: int
    agreeing: int
    unpredicted: int
    judged: int
    fixes: list[FixAnswer]
    complete: bool


class SpanQuery(Body):
    """A time window: `since` is included, `until` is not. By default the 7 days before now."""

    model_config = ConfigDict(strict=False)

    model: Name | None = None
    since: Moment | None = None
    until: Moment | None = None


class TopicsQuery(SpanQuery):
    """The window, and how many topics at most."""

    topics: Few = 12


class ReviewQuery(SpanQuery):
    """The window, and how many texts."""

    limit: Some = 20


class DiffQuery(Body):
    """Two versions, the sentiments that each should have said, the window, and how many clusters at most."""

    model_config = ConfigDict(strict=False, populate_by_name=True)

    version_from: Name = Field(alias="from")
    version_to: Name = Field(alias="to")
    was: Sentiment | None = None
    now: Sentiment | None = None
    since: Moment | None = None
    until: Moment | None = None
    clusters: Few = 8


class DriftQuery(SpanQuery):
    """The window (by default the day before now) and the reference (by default the 7 days before the window)."""

    reference_since: Moment | None = None
    reference_until: Moment | None = None
    limit: Some = 10


class WindowAnswer(Shape):
    """A time window: `since` is included, `until` is not."""

    since: AwareDatetime
    until: AwareDatetime


class AccuracyAnswer(Shape):
    """Judged predictions of a version."""

    model_version: str
    judged: int
    right: int
    accuracy: float


class ExampleText(Shape):
    """A text of a sample, and its last prediction in the window."""

    text_id: UUID
    text: str
    prediction_id: UUID
    sentiment: Sentiment
    confidence: float
    model_version: str


class TopicExample(ExampleText):
    """With its cosine to the topic's centre."""

    similarity: float


class TopicAnswer(Shape):
    """Texts of like meaning, the words that tell them from the others, and how they were judged."""

    texts: int
    share: float
    words: list[str]
    sentiments: dict[Sentiment, int]
    accuracy: list[AccuracyAnswer]
    examples: list[TopicExample]


class TopicsAnswer(WindowAnswer):
    """The topics of a sample of the window, the largest first."""

    model: str
    sampled: int
    topics: list[TopicAnswer]


class ReviewItem(ExampleText):
    """A text worth a judgement: its score, and what that is made of, each in 0…1."""

    score: float
    uncertainty: float
    density: float
    disagreement: float


class ReviewAnswer(WindowAnswer):
    """The texts whose feedback would teach most, of `candidates` without any, beside `judged` texts with some."""

    model: str
    candidates: int
    judged: int
    items: list[ReviewItem]


class SaidAnswer(Shape):
    """What a version said last."""

    prediction_id: UUID
    sentiment: Sentiment
    confidence: float


class DiffExample(Shape):
    """A text on which the versions differ."""

    model_config = ConfigDict(populate_by_name=True)

    text_id: UUID
    text: str
    said_from: SaidAnswer = Field(alias="from")
    said_to: SaidAnswer = Field(alias="to")


class ClusterAnswer(Shape):
    """Texts of like meaning among those on which the versions differ."""

    texts: int
    words: list[str]
    examples: list[DiffExample]


class DiffAnswer(WindowAnswer):
    """Of the texts that both judged, how many had which sentiments: by the first version's, then the other's.

    `sampled` of those asked for are in the clusters. `complete`: all of the window was looked at.
    """

    model_config = ConfigDict(populate_by_name=True)

    model: str
    version_from: str = Field(alias="from")
    version_to: str = Field(alias="to")
    compared: int
    differing: int
    matrix: dict[Sentiment, dict[Sentiment, int]]
    sampled: int
    clusters: list[ClusterAnswer]
    complete: bool


class MixAnswer(WindowAnswer):
    """A sample of a window: texts by sentiment, by tenth of the confidence and by version."""

    sampled: int
    sentiments: dict[Sentiment, int]
    confidences: list[int]
    confidence: float | None
    versions: dict[str, int]


class EmbeddingDrift(Shape):
    """The squared maximum mean discrepancy and its p-value by permutations; `drifted` at 0.01."""

    mmd2: float
    bandwidth: float
    p_value: float
    permutations: int
    drifted: bool


class StabilityAnswer(Shape):
    """Population stability indices: below 0.1 steady, above 0.25 a shift; null with fewer than 200 texts on a side."""

    sentiments: float | None
    confidences: float | None


class NovelText(ExampleText):
    """With its cosine to the nearest text of the reference."""

    nearest: float


class DriftAnswer(Shape):
    """How a window differs from a reference, and the texts that are newest."""

    model: str
    window: MixAnswer
    reference: MixAnswer
    embeddings: EmbeddingDrift | None
    stability: StabilityAnswer
    new: list[NovelText]
