"""Requests and answers of search: by meaning, by examples, by words too; near-duplicates."""

from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from db.schema.tables import DIMENSIONS
from serving.api.schemas.data import FeedbackAnswer, PredictionAnswer
from serving.api.schemas.fields import WHOLE, Body, Moment, Name, Sentiment, Shape, Text
from serving.search.service import DUPLICATE_SIMILARITY

MAX_EXAMPLES: Final = 20

Finite = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[Finite], Field(min_length=DIMENSIONS, max_length=DIMENSIONS)]
Cosine = Annotated[float, Field(allow_inf_nan=False, ge=-1, le=1)]
Neighbours = Annotated[int, Field(ge=1, le=100), WHOLE]

_KINDS: Final = {"text": "string", "prediction_id": "string", "text_id": "string", "embedding": "array"}


def _one_of(*names: str) -> list[Any]:
    return [{"required": [name], "properties": {name: {"type": _KINDS[name]}}} for name in names]


def _given(shape: Body, *names: str) -> int:
    return sum(getattr(shape, name) is not None for name in names)


class ExampleRequest(Body):
    """Something to be near to, or far from: exactly one of a text, a prediction, a stored text and a vector."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": _one_of("text", "prediction_id", "text_id", "embedding")}
    )

    text: Text | None = None
    prediction_id: UUID | None = None
    text_id: UUID | None = None
    embedding: Vector | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if _given(self, "text", "prediction_id", "text_id", "embedding") != 1:
            raise ValueError("give exactly one of text, prediction_id, text_id and embedding")
        return self


class SimilarFilters(Body):
    """A text fits if one of its predictions satisfies all of these. `since` is included, `until` is not."""

    sentiment: Sentiment | None = None
    model_version: Name | None = None
    user_id: UUID | None = None
    since: Moment | None = None
    until: Moment | None = None
    has_feedback: bool | None = None
    is_correct: bool | None = None


def _examples(schema: JsonDict) -> None:
    """A query, or something to be like, or both; never two queries."""
    liked: JsonDict = {"required": ["like"], "properties": {"like": {"minItems": 1}}}
    queries = _one_of("text", "prediction_id", "embedding")
    none: JsonDict = {"properties": {name: {"type": "null"} for name in _KINDS if name != "text_id"}}
    schema["oneOf"] = [*queries, {"allOf": [liked, none]}]
    schema["examples"] = [{"text": "lasts long on one charge", "k": 5}]


class SimilarRequest(Body):
    """The nearest texts to a text, to a prediction's text or to a vector: at most one of the three.

    With `like` and `unlike` the query moves towards the ones and away from the others; without one of the three it
    is `like` alone that is sought. `keywords` are sought besides.
    """

    model_config = ConfigDict(json_schema_extra=_examples)

    text: Text | None = None
    prediction_id: UUID | None = None
    embedding: Vector | None = None
    like: list[ExampleRequest] = Field(default=[], max_length=MAX_EXAMPLES)
    unlike: list[ExampleRequest] = Field(default=[], max_length=MAX_EXAMPLES)
    keywords: Name | None = Field(
        None,
        description='words that the text should hold, too: all of them, with `or`, `-word` and "a phrase"',
    )
    k: Neighbours = 10
    filters: SimilarFilters = SimilarFilters()
    min_similarity: Cosine | None = None
    exact: bool = Field(False, description="compare every fitting text instead of asking the index")
    counts: bool = Field(False, description="count what was found by sentiment and by version, too")

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        given = _given(self, "text", "prediction_id", "embedding")
        if given > 1 or (given == 0 and not self.like):
            raise ValueError("give exactly one of text, prediction_id and embedding, or else like")
        return self


class DuplicatesRequest(ExampleRequest):
    """The near-duplicates of a text: stored texts of this cosine to it or more, without itself."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"text": "The battery lasts for days."}],
            "oneOf": _one_of("text", "prediction_id", "text_id", "embedding"),
        }
    )

    min_similarity: Cosine = DUPLICATE_SIMILARITY
    k: Neighbours = 100


class RanksAnswer(Shape):
    """Where a text stands by meaning and by words, from 1, null if not among the first 100; Σ 1 / (60 + rank)."""

    score: float
    meaning: int | None
    keywords: int | None


class NearText(Shape):
    """A text, how near it is (cosine), its latest prediction per version, and their feedback."""

    text_id: UUID
    text: str
    similarity: float
    predictions: list[PredictionAnswer]
    feedback: list[FeedbackAnswer]


class SimilarText(NearText):
    """A text that was found; `ranks` if it was searched by words, too."""

    ranks: RanksAnswer | None = Field(None, description="with keywords")


class VersionCounts(Shape):
    """Texts by the sentiment that this version judged them last."""

    model: str
    model_version: str
    sentiments: dict[Sentiment, int]


class CountsAnswer(Shape):
    """Texts by the sentiment of their latest prediction, and by version."""

    sentiments: dict[Sentiment, int]
    versions: list[VersionCounts]


class SimilarAnswer(Shape):
    """Best first. `complete`: no fitting text is missing that should be here."""

    results: list[SimilarText]
    exact: bool
    complete: bool
    counts: CountsAnswer | None = Field(None, description="if asked for")
