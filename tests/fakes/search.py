"""Fakes of the searches by meaning and by words, and of the stored vectors."""

import re
from collections.abc import Sequence
from uuid import UUID

from db.core.binary import Vector
from db.predictions.predictions import Prediction
from db.search.keywords import KeywordHits
from db.search.similarity import Neighbour, Neighbours, SimilarityFilters
from tests.fakes.predictions import fits
from tests.fakes.store import FakeStore


class FakeSimilarityRepository:
    """Compares all vectors of a fake store."""

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
        """Return the `k` nearest texts that fit."""
        self._store.reach()
        filters = filters or SimilarityFilters()
        fitting = {each.text_id for each in self._store.visible(holder, shadows=False) if fits(each, filters)}
        similarities = [(self._similarity(vector, text_id), text_id) for text_id in fitting]
        nearest = sorted(
            (each for each in similarities if min_similarity is None or each[0] >= min_similarity),
            key=lambda each: (-each[0], each[1]),
        )
        found = [(text_id, similarity) for similarity, text_id in nearest[:k]]
        return Neighbours(results=await self.describe(found, holder=holder), exact=True, complete=True)

    async def describe(
        self, found: Sequence[tuple[UUID, float | None]], *, holder: UUID | None = None
    ) -> tuple[Neighbour, ...]:
        """Return the texts with their predictions and feedback, without those that no prediction names."""
        self._store.reach()
        visible = self._store.visible(holder, shadows=False)
        known = {text_id: [each for each in visible if each.text_id == text_id] for text_id, _ in found}
        return tuple(
            _neighbour(text_id, similarity, known[text_id]) for text_id, similarity in found if known[text_id]
        )

    def _similarity(self, vector: Vector, text_id: UUID) -> float:
        return min(1.0, max(-1.0, float(self._store.vector(text_id) @ vector)))


class FakeVectorRepository:
    """The vectors of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def of_texts(self, text_ids: Sequence[UUID], *, holder: UUID | None = None) -> dict[UUID, Vector]:
        """Return the vector of each text that has one."""
        self._store.reach()
        known = self._store.texts.keys()
        if holder is not None:
            known = {each.text_id for each in self._store.visible(holder, shadows=False)}
        return {text_id: self._store.vector(text_id) for text_id in text_ids if text_id in known}

    async def texts_of(
        self, prediction_ids: Sequence[UUID], *, holder: UUID | None = None
    ) -> dict[UUID, UUID]:
        """Return the text of each prediction."""
        self._store.reach()
        return {each.id: each.text_id for each in self._store.visible(holder) if each.id in prediction_ids}


class FakeKeywordRepository:
    """Finds words in the texts of a fake store; the shortest text comes first."""

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
        """Return the texts that hold all the words, but none with a word after a `-`."""
        self._store.reach()
        filters = filters or SimilarityFilters()
        unwanted = {word for term in words.split() if term.startswith("-") for word in _words(term)}
        wanted = {word for term in words.split() if not term.startswith("-") for word in _words(term)}
        texts = {
            each.text_id: _words(each.text)
            for each in self._store.visible(holder, shadows=False)
            if fits(each, filters)
        }
        found = [
            (len(held), text_id)
            for text_id, held in texts.items()
            if wanted | unwanted and wanted.issubset(held) and unwanted.isdisjoint(held)
        ]
        return KeywordHits(text_ids=tuple(text_id for _, text_id in sorted(found)[:limit]), complete=True)


def _neighbour(text_id: UUID, similarity: float | None, predictions: Sequence[Prediction]) -> Neighbour:
    latest: dict[tuple[str, str], Prediction] = {}
    for prediction in predictions:
        latest.setdefault((prediction.model, prediction.version), prediction)
    return Neighbour(
        text_id=text_id,
        text=predictions[0].text,
        similarity=similarity,
        predictions=tuple(latest[version] for version in sorted(latest)),
        feedback=tuple(judgement for each in reversed(predictions) for judgement in each.feedback),
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
