"""Similarity search against brute force in numpy: filters, scopes, plans, and always k results."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

import db.search.similarity
from db.accounts.keys import Key
from db.accounts.users import UserRepository
from db.connection.engine import Database
from db.core.ids import uuid7_time
from db.embeddings.segments import Segments
from db.embeddings.vectors import VectorRepository
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.predictions.submissions import NewPrediction, NewText, Submission
from db.privacy.erasure import ErasureRepository, NearCopies
from db.search.similarity import Neighbours, SimilarityFilters, SimilarityRepository
from tests.support.postgres import SPACE, TestServer, open_database
from tests.support.row_factories import (
    new_key,
    new_prediction,
    new_submission,
    new_text,
    new_writer,
    run_sql,
    unit_vectors,
)

pytestmark = pytest.mark.anyio

ROWS = 2400


@dataclass(kw_only=True)
class World:
    """The stored rows as plain values."""

    similarity: SimilarityRepository
    key: Key
    other: Key
    user: UUID
    texts: list[NewText]
    vectors: np.ndarray[Any, np.dtype[np.float32]]
    predictions: list[NewPrediction]
    verdicts: dict[UUID, bool]

    def expected(self, query: Any, fits: Callable[[NewPrediction], bool], k: int) -> list[UUID]:
        fitting = {p.text_id for p in self.predictions if p.arm != "shadow" and fits(p)}
        scores = self.vectors @ query.astype(np.float16).astype(np.float32)
        order = [self.texts[i].id for i in np.argsort(-scores, kind="stable")]
        return [text_id for text_id in order if text_id in fitting][:k]


@pytest.fixture(scope="module")
def stored(server: TestServer) -> Iterator[tuple[str, World]]:
    """Store 2,400 texts in three segments (two indexed, one open), with two predictions each and a shadow."""

    async def fill(url: str) -> World:
        async with open_database(url) as database:
            return await store_world(database)

    with server.database() as url:
        yield url, asyncio.run(fill(url))


@pytest.fixture
async def database(stored: tuple[str, World]) -> AsyncIterator[Database]:
    async with open_database(stored[0]) as ready:
        yield ready


@pytest.fixture
def world(stored: tuple[str, World], database: Database) -> World:
    return replace(stored[1], similarity=SimilarityRepository(database, space=SPACE))


async def store_world(database: Database) -> World:
    random = np.random.default_rng(3)
    key, other = await new_key(database), await new_key(database)
    user = (await UserRepository(database).create(username="u", email="u@example.org", actor=None)).id
    vectors = unit_vectors(ROWS).astype(np.float16).astype(np.float32)
    texts = [new_text(vector=vector) for vector in vectors]
    predictions: list[NewPrediction] = []
    segments = Segments(database, SPACE)
    for start in range(0, ROWS, 800):
        batch = []
        for text in texts[start : start + 800]:
            mine = key if random.random() < 0.9 else other
            results = [
                new_prediction(
                    mine,
                    text,
                    version=version,
                    label=str(random.choice(["negative", "neutral", "positive"])),
                    user_id=user if random.random() < 0.02 else None,
                )
                for version in ("1", "2")
            ]
            results.append(new_prediction(mine, text, version="3", arm="shadow", label="negative"))
            predictions += results
            batch.append(Submission(texts=[text], predictions=results))
        await new_writer(database).commit(batch)
        if start < 1600:
            await segments.roll(800)
            await segments.index_next()
    verdicts: dict[UUID, bool] = {}
    store = FeedbackRepository(database)
    for prediction in predictions[::17]:
        verdicts[prediction.id] = bool(random.random() < 0.5)
        await store.put(
            NewFeedback(
                prediction_id=prediction.id,
                holder_id=key.holder_id,
                key_id=key.id,
                is_correct=verdicts[prediction.id],
            )
        )
    await run_sql(database, "ANALYZE")
    return World(
        similarity=SimilarityRepository(database, space=SPACE),
        key=key,
        other=other,
        user=user,
        texts=texts,
        vectors=vectors,
        predictions=predictions,
        verdicts=verdicts,
    )


def ids(found: Neighbours) -> list[UUID]:
    return [neighbour.text_id for neighbour in found.results]


@pytest.mark.parametrize("least", [100, 3])
async def test_exact_answers_equal_brute_force_under_every_filter(
    world: World, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    # A least reach of 3 makes the first nearest rows too few.
    monkeypatch.setattr("db.search.similarity._LEAST_REACH", least)
    monkeypatch.setattr("db.search.similarity._REACH", least / 100)
    query = unit_vectors(1, seed=9)[0]
    cut = uuid7_time(world.predictions[3000].id)
    cases: list[tuple[SimilarityFilters, Callable[[NewPrediction], bool]]] = [
        (SimilarityFilters(), lambda p: True),
        (SimilarityFilters(sentiment="neutral"), lambda p: p.label == "neutral"),
        (
            SimilarityFilters(sentiment="negative", model_version="2"),
            lambda p: p.label == "negative" and p.version == "2",
        ),
        (SimilarityFilters(model_version="3"), lambda p: p.version == "3"),
        (SimilarityFilters(user_id=world.user), lambda p: p.user_id == world.user),
        (SimilarityFilters(since=cut), lambda p: uuid7_time(p.id) >= cut),
        (SimilarityFilters(until=cut), lambda p: uuid7_time(p.id) < cut),
        (SimilarityFilters(has_feedback=True), lambda p: p.id in world.verdicts),
        (SimilarityFilters(has_feedback=False), lambda p: p.id not in world.verdicts),
        (SimilarityFilters(is_correct=False), lambda p: world.verdicts.get(p.id) is False),
        (
            SimilarityFilters(is_correct=True, sentiment="positive", model_version="1"),
            lambda p: world.verdicts.get(p.id) is True and p.label == "positive" and p.version == "1",
        ),
        (SimilarityFilters(has_feedback=False, is_correct=True), lambda p: False),
    ]
    for filters, fits in cases:
        expected = world.expected(query, fits, 20)
        neighbours = await world.similarity.search(query, k=20, filters=filters, exact=True)
        assert ids(neighbours) == expected, filters
        assert neighbours.exact
        assert neighbours.complete
        chosen = await world.similarity.search(query, k=20, filters=filters)
        assert len(chosen.results) == len(expected), filters
        assert chosen.complete is chosen.exact


async def test_the_index_finds_nearly_what_brute_force_finds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.search.similarity._STEP", 0.0)
    hits = total = 0
    for seed in range(20, 30):
        query = unit_vectors(1, seed=seed)[0]
        for filters, fits in (
            (SimilarityFilters(), lambda p: True),
            (SimilarityFilters(sentiment="neutral"), lambda p: p.label == "neutral"),
        ):
            neighbours = await world.similarity.search(query, k=10, filters=filters)
            # The index may have missed a nearer one.
            assert (neighbours.exact, neighbours.complete) == (False, False)
            similarities = [neighbour.similarity for neighbour in neighbours.results]
            assert similarities == sorted(similarities, reverse=True)
            expected = world.expected(query, fits, 10)
            hits += len(set(expected) & set(ids(neighbours)))
            total += len(expected)
    assert hits / total > 0.97


async def test_an_index_that_ends_short_falls_back_to_an_exact_scan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.search.similarity._STEP", 0.0)
    monkeypatch.setattr("db.search.similarity._MAX_SCAN_TUPLES", 10)
    monkeypatch.setattr("db.search.similarity._BROADEST", 10)
    query = unit_vectors(1, seed=9)[0]
    filters = SimilarityFilters(user_id=world.user)
    neighbours = await world.similarity.search(query, k=100, filters=filters)
    assert ids(neighbours) == world.expected(query, lambda p: p.user_id == world.user, 100)
    assert neighbours.exact
    assert neighbours.complete


async def test_a_fallback_that_takes_too_long_says_that_it_is_incomplete(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.search.similarity._STEP", 0.0)
    monkeypatch.setattr("db.search.similarity._MAX_SCAN_TUPLES", 10)
    monkeypatch.setattr("db.search.similarity._BROADEST", 10)
    hasty = SimilarityRepository(database, space=SPACE, exact_seconds=0.001)
    neighbours = await hasty.search(
        unit_vectors(1, seed=9)[0], k=100, filters=SimilarityFilters(user_id=world.user)
    )
    assert not neighbours.complete
    assert not neighbours.exact


async def test_a_holder_sees_only_texts_predictions_and_feedback_of_his_own(world: World) -> None:
    query = unit_vectors(1, seed=9)[0]
    holder = world.other.holder_id
    neighbours = await world.similarity.search(query, k=50, holder=holder)
    assert ids(neighbours) == world.expected(query, lambda p: p.holder_id == holder, 50)
    for neighbour in neighbours.results:
        assert {prediction.holder_id for prediction in neighbour.predictions} == {holder}


async def test_an_answer_shows_the_latest_prediction_of_each_version_and_all_feedback(
    world: World, database: Database
) -> None:
    text = new_text(vector=unit_vectors(1, seed=77)[0])
    older = [new_prediction(world.key, text, version=version) for version in ("1", "2")]
    newer = new_submission(world.key, [text], version="2", label="neutral")
    await new_writer(database).commit([Submission(texts=[text], predictions=older), newer])
    await FeedbackRepository(database).put(
        NewFeedback(
            prediction_id=older[1].id,
            holder_id=world.key.holder_id,
            key_id=world.key.id,
            is_correct=False,
            comment="no",
        )
    )
    neighbour = (await world.similarity.search(unit_vectors(1, seed=77)[0], k=1)).results[0]
    assert neighbour.text_id == text.id
    assert neighbour.text == text.content
    assert neighbour.similarity == pytest.approx(1, abs=2e-3)
    assert [prediction.id for prediction in neighbour.predictions] == [older[0].id, newer.predictions[0].id]
    assert [judgement.comment for judgement in neighbour.feedback] == ["no"]
    await run_sql(database, "DELETE FROM feedback WHERE comment = 'no'")
    await run_sql(database, "DELETE FROM predictions WHERE text_id = %s", text.id)


async def test_min_similarity_cuts_and_is_complete(world: World) -> None:
    query = world.vectors[7]
    scores = np.sort(world.vectors @ query)[::-1]
    least = float(scores[4] + scores[5]) / 2
    neighbours = await world.similarity.search(query, k=50, min_similarity=least)
    assert len(neighbours.results) == 5
    assert neighbours.complete
    assert all(neighbour.similarity >= least for neighbour in neighbours.results)


async def test_hostile_filters_are_values(world: World) -> None:
    query = unit_vectors(1)[0]
    for evil in ("'; DROP TABLE users; --", "%s", "{}", "positive' OR '1'='1"):
        filters = SimilarityFilters(sentiment=evil, model_version=evil)
        assert (await world.similarity.search(query, filters=filters)).results == ()


async def test_vectors_of_stored_texts_can_be_searched_by(world: World, database: Database) -> None:
    vectors, prediction, other = VectorRepository(database, space=SPACE), world.predictions[0], uuid4()
    text_id = (await vectors.texts_of([prediction.id], holder=prediction.holder_id))[prediction.id]
    result = await vectors.of_texts([text_id, uuid4()], holder=prediction.holder_id)
    assert list(result) == [text_id]
    assert np.array_equal(result[text_id], world.vectors[0])
    assert await vectors.texts_of([prediction.id, uuid4()], holder=other) == {}
    assert await vectors.of_texts([text_id], holder=other) == {}


async def test_a_search_is_incomplete_if_a_result_is_erased_before_the_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, texts = await new_key(database), [new_text() for _ in range(3)]
    await new_writer(database).commit([new_submission(key, texts)])
    similarity = SimilarityRepository(database, space=SPACE)
    result, query = (
        db.search.similarity.load_histories,
        np.frombuffer(texts[0].embedding, "<f2").astype(np.float32),
    )

    async def later(*arguments: Any, **named: Any) -> Any:
        await ErasureRepository(database, similarity, space=SPACE).erase_text(texts[0].id, actor=None)
        return await result(*arguments, **named)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(ErasureRepository, "_near", no_near_copies)
        meanwhile.setattr(db.search.similarity, "load_histories", later)
        neighbours = await similarity.search(query, k=2)
    assert (len(neighbours.results), neighbours.complete) == (1, False)
    assert (await similarity.search(query, k=2)).complete


async def no_near_copies(*_: object) -> NearCopies:
    return NearCopies(cosine=1.0, text_ids=(), complete=True)


async def test_an_empty_memory_answers_nothing(url: str) -> None:
    async with open_database(url) as empty:
        neighbours = await SimilarityRepository(empty, space=SPACE).search(unit_vectors(1)[0], k=5)
    assert neighbours == Neighbours(results=(), exact=True, complete=True)
