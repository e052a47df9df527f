"""Use cases of search: by meaning, by examples, by words too, and near-duplicates.

Knows no HTTP and no SQL. A caller with a scope finds only texts in that holder's predictions.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.core.binary import Vector
from db.search.keywords import KeywordHits
from db.search.similarity import Neighbour, Neighbours, SimilarityFilters
from serving.core.caller import Caller
from serving.core.database_errors import translate_database_errors
from serving.errors import Invalid, NotFound, Problem
from serving.search.fusion import fuse, rocchio

Embed: TypeAlias = Callable[[Sequence[str]], Awaitable[tuple[NDArray[np.float32], int]]]

# Texts that have nothing to do with each other stay far below; a full stop or a link more stays above, and so does a
# "not" more (docs/performance.md).
DUPLICATE: Final = 0.95
MEANING, KEYWORDS = "meaning", "keywords"
# How far either ranking is read before they are fused.
_FUSED: Final = 100


class SimilarityIndex(Protocol):
    """The vectors that can be searched."""

    async def search(
        self,
        vector: Vector,
        *,
        k: int = 10,
        filters: SimilarityFilters | None = None,
        holder: UUID | None = None,
        min_similarity: float | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """The nearest texts."""

    async def describe(
        self, found: list[tuple[UUID, float]], *, holder: UUID | None = None
    ) -> tuple[Neighbour, ...]:
        """What is known of texts."""


class VectorRecords(Protocol):
    """The stored vectors."""

    async def of_texts(self, text_ids: Sequence[UUID], *, holder: UUID | None = None) -> dict[UUID, Vector]:
        """Those of these texts."""

    async def texts_of(
        self, prediction_ids: Sequence[UUID], *, holder: UUID | None = None
    ) -> dict[UUID, UUID]:
        """The texts of these predictions."""


class KeywordIndex(Protocol):
    """The words that can be searched."""

    async def search(
        self,
        words: str,
        *,
        limit: int,
        filters: SimilarityFilters | None = None,
        holder: UUID | None = None,
    ) -> KeywordHits:
        """The texts that hold them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchExample:
    """Something to be near to; exactly one of these says what."""

    text: str | None = None
    prediction_id: UUID | None = None
    text_id: UUID | None = None
    embedding: Sequence[float] | None = None

    @property
    def given(self) -> bool:
        """Whether it says anything."""
        return any(
            value is not None for value in (self.text, self.prediction_id, self.text_id, self.embedding)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchQuery:
    """What similar texts are wanted: like `query` or `like`, of which one says something, and not like `unlike`.

    `keywords`: the words that they should hold, too, as a web search writes them.
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
class FusedRanks:
    """Where a text stands in each ranking that has it, from 1, and the score of them together."""

    score: float
    meaning: int | None
    keywords: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What was found, best first; `ranks` by text, if it was searched by words too."""

    neighbours: Neighbours
    ranks: Mapping[UUID, FusedRanks] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourCounts:
    """Texts by the label of their latest prediction, and by that of each version's latest."""

    sentiments: Mapping[str, int]
    versions: Mapping[tuple[str, str], Mapping[str, int]]


class SearchService:
    """Finds what its caller may see, in a bounded amount of work."""

    def __init__(
        self,
        *,
        similarity: SimilarityIndex,
        vectors: VectorRecords,
        keywords: KeywordIndex,
        embed: Embed,
    ) -> None:
        self._similarity = similarity
        self._vectors = vectors
        self._keywords = keywords
        self._embed = embed

    async def similar(self, search: SearchQuery, caller: Caller) -> SearchResult:
        """The stored texts nearest in meaning; stored examples themselves are left out.

        Raises:
            NotFound: an example that doesn't exist, or isn't the caller's.
            Invalid: a vector without a direction, or examples that cancel each other out.
            Conflict: words are sought where texts are encrypted.
        """
        vector, stored = await self._wanted(search, caller)
        filters = search.filters or SimilarityFilters()
        if search.keywords is not None:
            return await self._fused(search, vector, filters, stored, caller)
        with translate_database_errors():
            found = await self._similarity.search(
                vector,
                k=search.k + len(stored),
                filters=filters,
                holder=caller.scope,
                min_similarity=search.min_similarity,
                exact=search.exact,
            )
        return SearchResult(neighbours=_without(found, stored, search.k))

    async def duplicates(
        self, example: SearchExample, caller: Caller, *, min_similarity: float = DUPLICATE, k: int = 100
    ) -> Neighbours:
        """At most `k` stored texts of this cosine or more to an example, without the example itself.

        Raises:
            NotFound: of the example.
            Invalid: a vector without a direction.
        """
        (vector,), stored = await self._vectors_of([example], caller, "query")
        with translate_database_errors():
            found = await self._similarity.search(
                vector, k=k + 1, holder=caller.scope, min_similarity=min_similarity
            )
        return _without(found, stored, k)

    async def _wanted(self, search: SearchQuery, caller: Caller) -> tuple[Vector, frozenset[UUID]]:
        """The vector to be near to, and the stored texts among the examples."""
        queries = [search.query] if search.query.given else []
        query, _ = await self._vectors_of(queries, caller, "query")
        if not search.like and not search.unlike:
            return query[0], frozenset()
        like, liked = await self._vectors_of(search.like, caller, "like")
        unlike, unliked = await self._vectors_of(search.unlike, caller, "unlike")
        vector = rocchio(query[0] if query else None, like, unlike)
        if vector is None:
            raise Invalid("the examples cancel each other out: leave some of them out")
        return vector, liked | unliked

    async def _vectors_of(
        self, examples: Sequence[SearchExample], caller: Caller, place: str
    ) -> tuple[list[Vector], frozenset[UUID]]:
        """Unit vectors of the examples, in order, and the ids of those that are stored texts."""
        texts = [example.text for example in examples if example.text is not None]
        embedded = iter((await self._embed(texts))[0] if texts else ())
        predictions = [each.prediction_id for each in examples if each.prediction_id is not None]
        with translate_database_errors():
            texts_of = await self._vectors.texts_of(predictions, holder=caller.scope)
            stored = {each.text_id for each in examples if each.text_id is not None} | set(texts_of.values())
            vectors = await self._vectors.of_texts(list(stored), holder=caller.scope)
        found = []
        for at, example in enumerate(examples):
            if example.text is not None:
                found.append(np.ascontiguousarray(next(embedded), np.float32))
            elif example.embedding is not None:
                where: tuple[str | int, ...] = (
                    ("body", "embedding") if place == "query" else ("body", place, at, "embedding")
                )
                found.append(_unit(example.embedding, where))
            else:
                found.append(_known(example, texts_of, vectors))
        return found, frozenset(stored)

    async def _fused(
        self,
        search: SearchQuery,
        vector: Vector,
        filters: SimilarityFilters,
        stored: frozenset[UUID],
        caller: Caller,
    ) -> SearchResult:
        with translate_database_errors():
            hits = await self._keywords.search(
                search.keywords or "", limit=_FUSED + len(stored), filters=filters, holder=caller.scope
            )
            near = await self._similarity.search(
                vector,
                k=_FUSED + len(stored),
                filters=filters,
                holder=caller.scope,
                min_similarity=search.min_similarity,
                exact=search.exact,
            )
            cosines = {each.text_id: each.similarity for each in near.results}
            others = [text_id for text_id in hits.text_ids if text_id not in cosines]
            for text_id, other in (await self._vectors.of_texts(others)).items():
                cosines[text_id] = min(1.0, max(-1.0, float(other @ vector)))
            least = -1.0 if search.min_similarity is None else search.min_similarity

            def ranked(text_ids: Sequence[UUID]) -> list[UUID]:
                return [
                    text_id
                    for text_id in text_ids
                    if text_id not in stored and cosines.get(text_id, -2.0) >= least
                ][:_FUSED]

            fused = fuse(
                {MEANING: ranked([each.text_id for each in near.results]), KEYWORDS: ranked(hits.text_ids)}
            )[: search.k]
            known = {each.text_id: each for each in near.results}
            lacking = [(each.text_id, cosines[each.text_id]) for each in fused if each.text_id not in known]
            described = await self._similarity.describe(lacking, holder=caller.scope)
        known |= {each.text_id: each for each in described}
        results = tuple(known[each.text_id] for each in fused if each.text_id in known)
        return SearchResult(
            neighbours=replace(near, results=results, complete=near.complete and hits.complete),
            ranks={
                each.text_id: FusedRanks(
                    score=each.score, meaning=each.ranks.get(MEANING), keywords=each.ranks.get(KEYWORDS)
                )
                for each in fused
            },
        )


def count_predictions(neighbours: Neighbours) -> NeighbourCounts:
    """How the neighbourhood was predicted."""
    sentiments: Counter[str] = Counter()
    versions: dict[tuple[str, str], Counter[str]] = {}
    for neighbour in neighbours.results:
        latest = max(neighbour.predictions, key=lambda prediction: prediction.id)
        sentiments[latest.label] += 1
        for prediction in neighbour.predictions:
            versions.setdefault((prediction.model, prediction.version), Counter())[prediction.label] += 1
    return NeighbourCounts(sentiments=sentiments, versions=versions)


def _without(found: Neighbours, left_out: frozenset[UUID], k: int) -> Neighbours:
    kept = tuple(each for each in found.results if each.text_id not in left_out)
    return replace(found, results=kept[:k])


def _known(example: SearchExample, texts_of: Mapping[UUID, UUID], vectors: Mapping[UUID, Vector]) -> Vector:
    text_id = example.text_id
    if example.prediction_id is not None:
        text_id = texts_of.get(example.prediction_id)
        if text_id is None:
            raise NotFound(f"there is no prediction {example.prediction_id}")
    if text_id is None or text_id not in vectors:
        raise NotFound(f"there is no text {text_id} with a vector of this space")
    return vectors[text_id]


def _unit(values: Sequence[float], where: tuple[str | int, ...]) -> Vector:
    vector = np.asarray(values, np.float64)
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0.0:
        raise Invalid(
            "the embedding can't be compared", [Problem(loc=where, message="all of its numbers are 0")]
        )
    # Divided by the largest first, so that no square overflows.
    vector = vector / largest
    unit: Vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit
