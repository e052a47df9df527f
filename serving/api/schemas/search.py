"""Requests and responses of search: by meaning, by examples, by keywords; near-duplicates."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self
from uuid import UUID

from pydantic import AliasPath, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from db.schema.tables import DIMENSIONS
from serving.api.schemas.fields import (
    WHOLE,
    Moment,
    Name,
    RequestBody,
    ResponseBody,
    Rounded,
    Sentiment,
    Text,
    VersionName,
    Windowed,
    is_none,
    name_examples,
)
from serving.api.schemas.predictions import FeedbackResponse, PredictionResponse
from serving.search.service import DUPLICATE_SIMILARITY, KEYWORDS, MEANING

MAX_EXAMPLES: Final = 20

Finite = Annotated[float, Field(allow_inf_nan=False)]
Vector = Annotated[list[Finite], Field(min_length=DIMENSIONS, max_length=DIMENSIONS)]
Cosine = Annotated[float, Field(allow_inf_nan=False, ge=-1, le=1)]
UpTo100 = Annotated[int, Field(ge=1, le=100)]
NeighbourCount = Annotated[UpTo100, WHOLE]

_SCHEMAS: Final[dict[str, JsonDict]] = {
    "text": {"type": "string"},
    "prediction_id": {"type": "string"},
    "text_id": {"type": "string"},
    "embedding": {"type": "array", "items": {"type": "number"}},
}


def _one_of(*names: str) -> list[Any]:
    return [{"required": [name], "properties": {name: _SCHEMAS[name]}} for name in names]


def _require(*alternatives: Any) -> JsonDict:
    """Require one of these. Inside `allOf`, where generators of clients leave the object as it is."""
    return {"allOf": [{"oneOf": list(alternatives)}]}


def _count_present(body: RequestBody, *names: str) -> int:
    return sum(getattr(body, name) is not None for name in names)


class ExampleBody(RequestBody):
    """An example to move towards or away from: exactly one of a text, a prediction, a stored text and a vector."""

    model_config = ConfigDict(
        json_schema_extra=_require(*_one_of("text", "prediction_id", "text_id", "embedding"))
    )

    text: Text | None = None
    prediction_id: UUID | None = None
    text_id: UUID | None = None
    embedding: Vector | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if _count_present(self, "text", "prediction_id", "text_id", "embedding") != 1:
            raise ValueError("give exactly one of text, prediction_id, text_id and embedding")
        return self


class SimilarFilters(Windowed):
    """A text matches if one of its predictions satisfies all of these; `since` is inclusive, `until` exclusive."""

    sentiment: Sentiment | None = None
    model_version: VersionName | None = None
    user_id: UUID | None = None
    since: Moment | None = None
    until: Moment | None = None
    has_feedback: bool | None = None
    is_correct: bool | None = None


def _require_query() -> JsonDict:
    """Require a query, or `like`, or both, or else keywords with nothing to compare by; never two queries."""
    queries = ("text", "prediction_id", "embedding")
    liked: JsonDict = {"required": ["like"], "properties": {"like": {"minItems": 1}}}
    none: JsonDict = {"properties": {name: {"type": "null"} for name in queries}}
    examples: JsonDict = {"like": {"maxItems": 0}, "unlike": {"maxItems": 0}}
    words: JsonDict = {
        "required": ["keywords"],
        "properties": {"keywords": {"type": "string"}, "min_similarity": {"type": "null"}, **examples},
    }
    return _require(*_one_of(*queries), {"allOf": [liked, none]}, {"allOf": [words, none]})


class SimilarRequest(RequestBody):
    """The query: a text, a prediction or a vector, at most one of the three, or else `like` or `keywords`.

    `like` and `unlike` move it towards some examples and away from others; without one of the three, `like` is the
    query. `keywords` are searched in addition, or alone; alone, nothing is compared by meaning.
    """

    model_config = ConfigDict(
        json_schema_extra=_require_query()
        | name_examples(
            by_meaning={"text": "lasts long on one charge", "k": 5},
            with_filters={
                "text": "it runs out of power",
                "filters": {"sentiment": "negative", "since": "7d", "has_feedback": False},
            },
            with_keywords={"text": "it runs out of power", "keywords": 'battery -case "one day"'},
            by_examples={
                "like": [{"text": "The battery lasts for days."}],
                "unlike": [{"text": "The delivery took days."}],
            },
            by_keywords={"keywords": 'refund or "money back"'},
            with_counts={"text": "it runs out of power", "k": 100, "counts": True},
        )
    )

    text: Text | None = None
    prediction_id: UUID | None = None
    embedding: Vector | None = None
    like: list[ExampleBody] = Field(default=[], max_length=MAX_EXAMPLES)
    unlike: list[ExampleBody] = Field(default=[], max_length=MAX_EXAMPLES)
    keywords: Name | None = Field(
        None,
        description='search for these words, too or alone: all of them, with `or`, `-word` and "a phrase"',
    )
    k: NeighbourCount = 10
    filters: SimilarFilters = SimilarFilters()
    min_similarity: Cosine | None = None
    exact: bool = Field(False, description="compare every matching text instead of using the index")
    counts: bool = Field(False, description="also count the results by sentiment and by version")

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        queries = _count_present(self, "text", "prediction_id", "embedding")
        if queries > 1 or (queries == 0 and not self.like and self.keywords is None):
            raise ValueError(
                "give exactly one of text, prediction_id and embedding, or else like, or else keywords"
            )
        by_meaning = queries == 1 or self.like
        if not by_meaning and (self.unlike or self.min_similarity is not None):
            raise ValueError(
                "keywords alone compare no meaning: leave unlike and min_similarity out, or give text, "
                "prediction_id, embedding or like too"
            )
        return self


class DuplicatesRequest(ExampleBody):
    """A text, and the lowest cosine to it at which another stored text is a near-duplicate."""

    model_config = ConfigDict(
        json_schema_extra=_require(*_one_of("text", "prediction_id", "text_id", "embedding"))
        | name_examples(
            of_a_text={"text": "The battery lasts for days."},
            of_a_prediction={
                "prediction_id": "019a0000-0000-7000-8000-000000000000",
                "min_similarity": 0.9,
            },
        )
    )

    min_similarity: Cosine = DUPLICATE_SIMILARITY
    k: NeighbourCount = 100


class RanksResponse(ResponseBody):
    """A text's rank by meaning and by keywords, from 1, null after the first 100; `score` is Σ 1 / (60 + rank)."""

    score: Rounded
    meaning: int | None = Field(validation_alias=AliasPath("ranks", MEANING))
    keywords: int | None = Field(validation_alias=AliasPath("ranks", KEYWORDS))


class StoredTextResponse(ResponseBody):
    """A text, its latest prediction of each version, and their feedback."""

    text_id: UUID
    text: str
    predictions: list[PredictionResponse]
    feedback: list[FeedbackResponse]


class NearTextResponse(StoredTextResponse):
    """A text with its cosine to another one."""

    similarity: Rounded


class SimilarTextResponse(StoredTextResponse):
    """A result of a search with its cosine to the query; `ranks` if `keywords` were searched."""

    similarity: Rounded | None = Field(description="null for keywords alone")
    ranks: RanksResponse | None = Field(None, exclude_if=is_none, description="with keywords")


def _list_versions(versions: Mapping[tuple[str, str], Mapping[str, int]]) -> list[dict[str, Any]]:
    return [
        {"model": model, "model_version": version, "sentiments": sentiments}
        for (model, version), sentiments in sorted(versions.items())
    ]


class VersionCountsResponse(ResponseBody):
    """Texts by the latest sentiment that this version predicted."""

    model: str
    model_version: str
    sentiments: dict[Sentiment, int]


class NeighbourCountsResponse(ResponseBody):
    """Texts by the sentiment of their latest prediction, and by version."""

    sentiments: dict[Sentiment, int]
    versions: Annotated[list[VersionCountsResponse], BeforeValidator(_list_versions)]


class SimilarResponse(ResponseBody):
    """The results, best first. `complete`: no better match is missing."""

    results: list[SimilarTextResponse]
    exact: bool
    complete: bool
    counts: NeighbourCountsResponse | None = Field(None, exclude_if=is_none, description="with counts")
