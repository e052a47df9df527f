"""In-memory stands-in for what searches a fake store: by meaning, by words, and its vectors."""

from collections.abc import Sequence
from uuid import UUID

from db.core.binary import Vector
from db.predictions.predictions import Prediction
from db.search.keywords import KeywordHits
from db.search.similarity import Neighbour, Neighbours, SimilarityFilters
from tests.fakes.data import FakeStore, fits


class FakeSimilarityRepository:
    """The vectors of a fake store, always compared exactly."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

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
        self._store.reach()
        wanted = filters or SimilarityFilters()
        visible = answers(self._store, holder)
        fitting = {each.text_id for each in visible if fits(each, wanted)}
        near = sorted(((self._similarity(vector, text_id), text_id) for text_id in fitting), reverse=True)
        results = tuple(
            _neighbour(text_id, similarity, [each for each in visible if each.text_id == text_id])
            for similarity, text_id in near
            if min_similarity is None or similarity >= min_similarity
        )
        return Neighbours(results=results[:k], exact=True, complete=True)

    async def describe(
        self, found: list[tuple[UUID, float]], *, holder: UUID | None = None
    ) -> tuple[Neighbour, ...]:
        """What is known of texts."""
        self._store.reach()
        visible = answers(self._store, holder)
        return tuple(
            _neighbour(text_id, similarity, [each for each in visible if each.text_id == text_id])
            for text_id, similarity in found
        )

    def _similarity(self, vector: Vector, text_id: UUID) -> float:
        return float(self._store.vector(text_id) @ vector)


class FakeVectorRepository:
    """The vectors of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def of_texts(self, text_ids: Sequence[UUID], *, holder: UUID | None = None) -> dict[UUID, Vector]:
        """Those of these texts."""
        self._store.reach()
        seen = {each.text_id for each in answers(self._store, holder)}
        return {text_id: self._store.vector(text_id) for text_id in text_ids if text_id in seen}

    async def texts_of(
        self, prediction_ids: Sequence[UUID], *, holder: UUID | None = None
    ) -> dict[UUID, UUID]:
        """The texts of these predictions."""
        self._store.reach()
        return {each.id: each.text_id for each in self._store.visible(holder) if each.id in prediction_ids}


class FakeKeywordRepository:
    """The words of a fake store: all that are given must be there, the shortest text is the best."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def search(
        self,
        words: str,
        *,
        limit: int,
        filters: SimilarityFilters | None = None,
        holder: UUID | None = None,
    ) -> KeywordHits:
        """The texts that hold them."""
        self._store.reach()
        wanted = set(words.lower().split())
        fitting = {
            each.text_id: each.text
            for each in answers(self._store, holder)
            if fits(each, filters or SimilarityFilters())
        }
        found = [(len(text), text_id) for text_id, text in fitting.items() if wanted <= _words(text)]
        return KeywordHits(text_ids=tuple(text_id for _, text_id in sorted(found)[:limit]), complete=True)


def answers(store: FakeStore, holder: UUID | None) -> list[Prediction]:
    """What a holder, or anybody, was answered, newest first: everything but shadows."""
    return [each for each in store.visible(holder) if each.arm != "shadow"]


def _neighbour(text_id: UUID, similarity: float, predictions: Sequence[Prediction]) -> Neighbour:
    latest: dict[str, Prediction] = {}
    for prediction in predictions:
        latest.setdefault(prediction.version, prediction)
    kept = tuple(latest.values())
    return Neighbour(
        text_id=text_id,
        text=kept[0].text,
        similarity=similarity,
        predictions=kept,
        feedback=tuple(given for each in kept for given in each.feedback),
    )


def _words(text: str) -> set[str]:
    return set(text.lower().split())
