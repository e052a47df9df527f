"""Searches by meaning and by words, and the stored vectors: fakes and PostgreSQL alike."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from db.accounts.keys import Key
from db.predictions.feedback import Judgement, NewFeedback
from db.predictions.submissions import NewPrediction, NewText, Stored, Submission
from db.search.keywords import KeywordHits
from db.search.similarity import Neighbours, SimilarityFilters
from tests.fakes.inference import vector_of
from tests.support.repositories import Repositories
from tests.support.row_factories import add_key, new_prediction, new_text

pytestmark = pytest.mark.anyio

QUERY = vector_of("battery")
# Nearest to the query first; no text is as near as another.
TEXTS = ["battery", "battery good", "battery lasts long", "battery lasts very very long", "screen dim"]


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Stored texts, the prediction of each, and the key and the other key that hold them."""

    texts: list[NewText]
    rows: list[NewPrediction]
    key: Key
    other: Key
    user_id: UUID


@pytest.fixture
async def shelf(repositories: Repositories) -> Shelf:
    """The last text and the one before it are the other key's; a shadow answered the last one only."""
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    user = await repositories.users.create(username="ada", email="ada@example.org", actor=None)
    texts = [new_text(text, vector_of(text)) for text in TEXTS]
    rows = [
        new_prediction(key, texts[0]),
        new_prediction(key, texts[1], label="negative", user_id=user.id),
        new_prediction(key, texts[2], version="10"),
        new_prediction(other, texts[3], label="negative"),
        new_prediction(other, texts[4], arm="shadow"),
    ]
    submissions = [Submission(texts=[text], predictions=[row]) for text, row in zip(texts, rows, strict=True)]
    assert await repositories.writer.commit(submissions) == [Stored()] * 5
    for row, is_correct in ((rows[0], True), (rows[3], False)):
        await judge(repositories, row, key, is_correct=is_correct)
    return Shelf(texts=texts, rows=rows, key=key, other=other, user_id=user.id)


async def judge(repositories: Repositories, row: NewPrediction, key: Key, *, is_correct: bool) -> Judgement:
    feedback = NewFeedback(
        prediction_id=row.id,
        holder_id=key.holder_id,
        key_id=key.id,
        is_correct=is_correct,
        comment="a comment",
    )
    judgement: Judgement = await repositories.feedback.put(feedback)
    return judgement


def places(shelf: Shelf, text_ids: Any) -> list[int]:
    numbers = {text.id: number for number, text in enumerate(shelf.texts)}
    return [numbers[text_id] for text_id in text_ids]


async def test_the_nearest_texts_come_first(repositories: Repositories, shelf: Shelf) -> None:
    search = repositories.similarity.search
    found = await search(QUERY)
    assert type(found) is Neighbours
    assert (found.exact, found.complete) == (True, True)
    assert places(shelf, [each.text_id for each in found.results]) == [0, 1, 2, 3]
    assert [each.text for each in found.results] == TEXTS[:4]
    for each, row in zip(found.results, shelf.rows, strict=False):
        assert each.similarity == pytest.approx(float(vector_of(each.text) @ QUERY), abs=2e-3)
        assert each.similarity <= 1
        assert each.predictions == (await repositories.predictions.get(row.id),)
        assert each.feedback == each.predictions[0].feedback
    assert (await search(QUERY, k=2)).results == found.results[:2]
    assert (await search(QUERY, exact=True)).results == found.results
    third = found.results[2].similarity
    assert (await search(QUERY, min_similarity=third - 0.01)).results == found.results[:3]
    assert (await search(QUERY, min_similarity=third + 0.01)).results == found.results[:2]
    assert (await search(-QUERY, min_similarity=0.9)).results == ()
    assert len((await search(-QUERY, min_similarity=-1.0)).results) == 4


async def test_texts_that_are_as_near_are_ordered_by_id(repositories: Repositories) -> None:
    key = await add_key(repositories.keys)
    texts = [new_text(f"copy {number}", QUERY) for number in range(5)]
    rows = [new_prediction(key, text) for text in texts]
    await repositories.writer.commit([Submission(texts=texts, predictions=rows)])
    found = await repositories.similarity.search(QUERY, k=3)
    assert [each.text_id for each in found.results] == sorted(text.id for text in texts)[:3]
    assert [each.similarity for each in found.results] == pytest.approx([1.0] * 3, abs=2e-3)


async def test_both_searches_are_narrowed_by_every_filter(repositories: Repositories, shelf: Shelf) -> None:
    at = [(await repositories.predictions.get(row.id)).predicted_at for row in shelf.rows]
    hour = timedelta(hours=1)
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [0, 1, 2, 3]),
        ({"sentiment": "negative"}, [1, 3]),
        ({"model_version": "10"}, [2]),
        ({"user_id": shelf.user_id}, [1]),
        ({"user_id": uuid4()}, []),
        ({"since": at[0] - hour, "until": at[4] + hour}, [0, 1, 2, 3]),
        ({"since": at[4] + hour}, []),
        ({"until": at[0] - hour}, []),
        ({"has_feedback": True}, [0, 3]),
        ({"has_feedback": False}, [1, 2]),
        ({"is_correct": True}, [0]),
        ({"is_correct": False}, [3]),
        ({"is_correct": False, "has_feedback": False}, []),
    ]
    for values, expected in cases:
        filters = SimilarityFilters(**values)
        for holder, visible in ((None, expected), (shelf.key.id, [each for each in expected if each < 3])):
            found = await repositories.similarity.search(QUERY, filters=filters, holder=holder)
            assert places(shelf, [each.text_id for each in found.results]) == visible, values
            hits = await repositories.keywords.search("battery", limit=9, filters=filters, holder=holder)
            assert sorted(places(shelf, hits.text_ids)) == visible, values
            assert hits.complete


async def test_a_text_has_the_latest_prediction_of_each_version(
    repositories: Repositories, shelf: Shelf
) -> None:
    text = shelf.texts[0]
    rows = [
        new_prediction(shelf.key, text, version="10"),
        new_prediction(shelf.other, text, label="neutral"),
        new_prediction(shelf.key, text, model="other"),
        new_prediction(shelf.key, text, version="3", arm="shadow"),
    ]
    await repositories.writer.commit([Submission(texts=[text], predictions=[row]) for row in rows])
    first = (await repositories.predictions.get(shelf.rows[0].id)).feedback
    second = await judge(repositories, shelf.rows[0], shelf.other, is_correct=False)
    third = await judge(repositories, rows[0], shelf.key, is_correct=True)
    expected = {
        None: [rows[2].id, rows[0].id, rows[1].id],
        shelf.key.id: [rows[2].id, rows[0].id, shelf.rows[0].id],
        shelf.other.id: [rows[1].id],
    }
    for holder, ids in expected.items():
        (neighbour,) = (await repositories.similarity.search(QUERY, k=1, holder=holder)).results
        assert [each.id for each in neighbour.predictions] == ids
        shown = () if holder == shelf.other.id else (*first, second, third)
        assert neighbour.feedback == shown
        (described,) = await repositories.similarity.describe([(text.id, 0.5)], holder=holder)
        assert (described.similarity, described.predictions) == (0.5, neighbour.predictions)
        assert described.feedback == shown
    unknown = [(uuid4(), 0.25), (shelf.texts[2].id, 0.5), (shelf.texts[4].id, 0.5), (text.id, 0.75)]
    described = await repositories.similarity.describe(unknown)
    assert [(each.text_id, each.similarity) for each in described] == [unknown[1], unknown[3]]
    assert await repositories.similarity.describe([]) == ()


async def test_words_find_texts_that_hold_all_of_them(repositories: Repositories, shelf: Shelf) -> None:
    async def find(words: str, **options: Any) -> list[int]:
        hits = await repositories.keywords.search(words, **({"limit": 9} | options))
        assert type(hits) is KeywordHits
        assert hits.complete
        return places(shelf, hits.text_ids)

    assert await find("battery") == [0, 1, 2, 3]
    assert await find("battery", limit=2) == [0, 1]
    assert await find("LASTS, Battery!") == [2, 3]
    assert await find("long -very") == [2]
    assert await find("batter") == []
    assert await find("dim") == []
    assert await find("") == []
    assert await find("!") == []
    assert await find("battery", holder=shelf.other.id) == [3]
    assert await find("battery", holder=uuid4()) == []


async def test_vectors_and_texts_are_read_by_id(repositories: Repositories, shelf: Shelf) -> None:
    vectors, texts = repositories.vectors, shelf.texts
    text_ids = [*(text.id for text in texts), uuid4()]
    everything = await vectors.of_texts(text_ids)
    assert everything.keys() == {text.id for text in texts}
    for text in texts:
        vector = everything[text.id]
        assert (vector.dtype, vector.shape) == (np.float32, (384,))
        assert vector.astype("<f2").tobytes() == text.embedding
    own = await vectors.of_texts(text_ids, holder=shelf.key.id)
    assert own.keys() == {text.id for text in texts[:3]}
    others = await vectors.of_texts(text_ids, holder=shelf.other.id)
    assert others.keys() == {texts[3].id}
    ids = [*(row.id for row in shelf.rows), uuid4()]
    assert await vectors.texts_of(ids) == {row.id: row.text_id for row in shelf.rows}
    expected = {row.id: row.text_id for row in shelf.rows[3:]}
    assert await vectors.texts_of(ids, holder=shelf.other.id) == expected
    assert await vectors.of_texts([]) == {}
    assert await vectors.texts_of([]) == {}
