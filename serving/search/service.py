"""Search over the stored texts: by meaning, by examples, by keywords too, and for near-duplicates.

Knows no HTTP and no SQL. A caller with a scope finds only the texts of that holder's predictions.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias
from uuid import UUID

import numpy as np

from db.core.binary import Vector
from db.embeddings.vectors import VectorRepository
from db.search.keywords import KeywordRepository
from db.search.similarity import Neighbours, SimilarityFilters, SimilarityRepository
from serving.core.caller import Caller
from serving.core.database_errors import translate_database_errors
from serving.errors import Invalid, NotFound, Problem
from serving.predictions.service import Embeddings
from serving.search.fusion import FusedText, fuse, rocchio

Embed: TypeAlias = Callable[..., Awaitable[Embeddings]]

# Unrelated texts have a far smaller cosine. Texts that differ by a full stop, by a link, or by a "not", have a larger
# one (docs/performance.md).
DUPLICATE_SIMILARITY: Final = 0.95
MEANING, KEYWORDS = "meaning", "keywords"
# The length of each ranking that is fused.
_FUSION_DEPTH: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchExample:
    """An example text of a query; exactly one of the attributes is set."""

    text: str | None = None
    prediction_id: UUID | None = None
    text_id: UUID | None = None
    embedding: Sequence[float] | None = None

    @property
    def is_given(self) -> bool:
        """Return whether an attribute is set."""
        return any(
            value is not None for value in (self.text, self.prediction_id, self.text_id, self.embedding)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchQuery:
    """A search for texts like `query` or `like`, and not like `unlike`; or for texts that contain words.

    `keywords`: the words, in the syntax of a web search. With `query` or `like` the two rankings are fused; without
    them the words alone rank the texts, and there is no `unlike` and no `min_similarity`.
    """

    query: SearchExample = field(default_factory=SearchExample)
    like: Sequence[SearchExample] = ()
    unlike: Sequence[SearchExample] = ()
    keywords: str | None = None
    k: int = 10
    filters: SimilarityFilters | None = None
    min_similarity: float | None = None
    exact: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The texts found, best first; `ranks` by text id for a search with keywords, else None."""

    neighbours: Neighbours
    ranks: Mapping[UUID, FusedText] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourCounts:
    """The number of texts by the label of their latest prediction, in all and by model and version."""

    sentiments: Mapping[str, int]
    versions: Mapping[tuple[str, str], Mapping[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchService:
    """Searches find only what their caller may see, and do a bounded amount of work."""

    similarity: SimilarityRepository
    vectors: VectorRepository
    keywords: KeywordRepository
    embed: Embed

    async def find_similar(self, query: SearchQuery, caller: Caller) -> SearchResult:
        """Return the stored texts nearest in meaning, by words, or by both, without the stored examples.

        Raises:
            NotFound: an example doesn't exist or isn't the caller's.
            Invalid: a vector has no direction, or the examples cancel each other out.
            Conflict: keywords are given, but the texts are encrypted.
        """
        if query.keywords is not None and not query.query.is_given and not query.like:
            return await self._find_by_words(query, query.keywords, caller)
        vector, example_ids = await self._query_vector(query, caller)
        if query.keywords is not None:
            return await self._find_fused(query, vector, example_ids, caller)
        with translate_database_errors():
            near = await self._find_near(query, vector, query.k + len(example_ids), caller)
        return SearchResult(neighbours=_without(near, example_ids, query.k))

    async def find_duplicates(
        self,
        example: SearchExample,
        caller: Caller,
        *,
        min_similarity: float = DUPLICATE_SIMILARITY,
        k: int = 100,
    ) -> Neighbours:
        """Return at most `k` stored texts with at least this cosine to an example, without the example itself.

        Texts that are mostly unknown to an encoder aren't compared: it gives them all the same vector.

        Raises:
            NotFound: the example doesn't exist or isn't the caller's.
            Invalid: a vector has no direction.
        """
        (vector,), example_ids = await self._vectors_of([example], caller, "query", query=False)
        with translate_database_errors():
            near = await self.similarity.search(
                vector, k=k + 1, holder=caller.scope, min_similarity=min_similarity
            )
        strange = {
            each.text_id
            for each in near.results
            if any(prediction.mostly_unknown for prediction in each.predictions)
        }
        return _without(near, example_ids | strange, k)

    async def _find_near(self, query: SearchQuery, vector: Vector, k: int, caller: Caller) -> Neighbours:
        return await self.similarity.search(
            vector,
            k=k,
            filters=query.filters,
            holder=caller.scope,
            min_similarity=query.min_similarity,
            exact=query.exact,
        )

    async def _query_vector(self, query: SearchQuery, caller: Caller) -> tuple[Vector, frozenset[UUID]]:
        """Return the vector to search near, and the ids of the stored texts among the examples."""
        queries = [query.query] if query.query.is_given else []
        vectors, _ = await self._vectors_of(queries, caller, "query")
        if not query.like and not query.unlike:
            return vectors[0], frozenset()
        like, like_ids = await self._vectors_of(query.like, caller, "like")
        unlike, unlike_ids = await self._vectors_of(query.unlike, caller, "unlike")
        vector = rocchio(vectors[0] if vectors else None, like, unlike)
        if vector is None:
            raise Invalid("the examples cancel each other out: leave some of them out")
        return vector, like_ids | unlike_ids

    async def _vectors_of(
        self, examples: Sequence[SearchExample], caller: Caller, field_name: str, *, query: bool = True
    ) -> tuple[list[Vector], frozenset[UUID]]:
        """Return the unit vectors of the examples, in order, and the ids of those that are stored texts.

        `query`: the texts are to find others by, not to be compared as equals.
        """
        texts = [example.text for example in examples if example.text is not None]
        embedded = iter((await self.embed(texts, query=query)).vectors if texts else ())
        prediction_ids = [each.prediction_id for each in examples if each.prediction_id is not None]
        with translate_database_errors():
            texts_of = await self.vectors.texts_of(prediction_ids, holder=caller.scope)
            text_ids = {each.text_id for each in examples if each.text_id is not None} | set(
                texts_of.values()
            )
            stored = await self.vectors.of_texts(list(text_ids), holder=caller.scope)
        vectors = []
        for index, example in enumerate(examples):
            if example.text is not None:
                vectors.append(np.ascontiguousarray(next(embedded), np.float32))
            elif example.embedding is not None:
                location: tuple[str | int, ...] = (
                    ("body", "embedding")
                    if field_name == "query"
                    else ("body", field_name, index, "embedding")
                )
                vectors.append(_normalize(example.embedding, location))
            else:
                vectors.append(_stored_vector(example, texts_of, stored))
        return vectors, frozenset(text_ids)

    async def _find_by_words(self, query: SearchQuery, words: str, caller: Caller) -> SearchResult:
        with translate_database_errors():
            hits = await self.keywords.search(
                words, limit=query.k, filters=query.filters, holder=caller.scope
            )
            results = await self.similarity.describe(
                [(text_id, None) for text_id in hits.text_ids], holder=caller.scope
            )
        # A text that was erased in between may have taken the place of another.
        complete = hits.complete and len(results) == len(hits.text_ids)
        ranked = fuse({MEANING: [], KEYWORDS: [each.text_id for each in results]})
        return SearchResult(
            neighbours=Neighbours(results=results, exact=True, complete=complete),
            ranks={each.text_id: each for each in ranked},
        )

    async def _find_fused(
        self, query: SearchQuery, vector: Vector, example_ids: frozenset[UUID], caller: Caller
    ) -> SearchResult:
        depth = _FUSION_DEPTH + len(example_ids)
        with translate_database_errors():
            hits = await self.keywords.search(
                query.keywords or "", limit=depth, filters=query.filters, holder=caller.scope
            )
            near = await self._find_near(query, vector, depth, caller)
            cosines = {each.text_id: each.similarity for each in near.results if each.similarity is not None}
            others = [text_id for text_id in hits.text_ids if text_id not in cosines]
            for text_id, other in (await self.vectors.of_texts(others)).items():
                cosines[text_id] = min(1.0, max(-1.0, float(other @ vector)))
            minimum = -1.0 if query.min_similarity is None else query.min_similarity

            def eligible(text_ids: Sequence[UUID]) -> list[UUID]:
                return [
                    text_id
                    for text_id in text_ids
                    if text_id not in example_ids and cosines.get(text_id, -2.0) >= minimum
                ][:_FUSION_DEPTH]

            fused = fuse(
                {
                    MEANING: eligible([each.text_id for each in near.results]),
                    KEYWORDS: eligible(hits.text_ids),
                }
            )[: query.k]
            neighbours = {each.text_id: each for each in near.results}
            missing = [
                (each.text_id, cosines[each.text_id]) for each in fused if each.text_id not in neighbours
            ]
            described = await self.similarity.describe(missing, holder=caller.scope)
        neighbours |= {each.text_id: each for each in described}
        results = tuple(neighbours[each.text_id] for each in fused if each.text_id in neighbours)
        return SearchResult(
            neighbours=replace(near, results=results, complete=near.complete and hits.complete),
            ranks={each.text_id: each for each in fused},
        )


def count_predictions(neighbours: Neighbours) -> NeighbourCounts:
    """Count how the found texts were predicted."""
    sentiments: Counter[str] = Counter()
    versions: dict[tuple[str, str], Counter[str]] = {}
    for neighbour in neighbours.results:
        latest = max(neighbour.predictions, key=lambda prediction: prediction.id)
        sentiments[latest.label] += 1
        for prediction in neighbour.predictions:
            versions.setdefault((prediction.model, prediction.version), Counter())[prediction.label] += 1
    return NeighbourCounts(sentiments=sentiments, versions=versions)


def _without(neighbours: Neighbours, excluded: frozenset[UUID], k: int) -> Neighbours:
    kept = tuple(each for each in neighbours.results if each.text_id not in excluded)
    return replace(neighbours, results=kept[:k])


def _stored_vector(
    example: SearchExample, texts_of: Mapping[UUID, UUID], vectors: Mapping[UUID, Vector]
) -> Vector:
    text_id = example.text_id
    if example.prediction_id is not None:
        text_id = texts_of.get(example.prediction_id)
        if text_id is None:
            raise NotFound(f"there is no prediction {example.prediction_id}")
    if text_id is None or text_id not in vectors:
        raise NotFound(f"there is no text {text_id} with a vector of this space")
    return vectors[text_id]


def _normalize(values: Sequence[float], location: tuple[str | int, ...]) -> Vector:
    vector = np.asarray(values, np.float64)
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0.0:
        raise Invalid(
            "the embedding can't be compared", [Problem(loc=location, message="all of its numbers are 0")]
        )
    # Divided by the largest first, so that no square overflows.
    vector = vector / largest
    unit: Vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit
