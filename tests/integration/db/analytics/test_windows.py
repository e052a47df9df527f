"""Analytics read from real PostgreSQL: vectors, labels, windows, disagreements."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from db.accounts.keys import Key
from db.analytics.disagreements import DisagreementRepository
from db.analytics.labels import LabelRepository
from db.analytics.windows import Coverage, Window, WindowRepository, WindowSample
from db.connection.engine import Database
from db.core.ids import uuid7_time
from db.embeddings.segments import Segments
from db.embeddings.vectors import VectorRepository
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.predictions.submissions import NewPrediction, NewText, Submission
from tests.support.postgres import SPACE
from tests.support.row_factories import new_key, new_prediction, new_text, new_writer, now, run_sql

pytestmark = pytest.mark.anyio


def window() -> Window:
    return Window(since=now() - timedelta(minutes=5), until=now() + timedelta(minutes=5))


async def store(
    database: Database, key: Key, *texts: NewText, space: str = SPACE, **changes: Any
) -> list[NewPrediction]:
    predictions = [new_prediction(key, text, **changes) for text in texts]
    await new_writer(database, space).commit([Submission(texts=list(texts), predictions=predictions)])
    return predictions


async def judge(
    database: Database, key: Key, prediction: NewPrediction, *, correct: bool, label: str | None = None
) -> None:
    await FeedbackRepository(database).put(
        NewFeedback(
            prediction_id=prediction.id,
            holder_id=key.holder_id,
            key_id=key.id,
            is_correct=correct,
            label=label,
        )
    )


def rounded(text: NewText) -> Any:
    return np.frombuffer(text.embedding, "<f2").astype(np.float32)


async def test_vectors_come_bit_for_bit_by_holder_and_space(database: Database) -> None:
    key, other = await new_key(database), await new_key(database)
    await Segments(database, "elsewhere").ensure()
    mine, theirs, foreign, hidden = (new_text() for _ in range(4))
    predictions = await store(database, key, mine)
    await store(database, other, theirs)
    await store(database, key, foreign, space="elsewhere")
    await store(database, key, hidden, arm="shadow")
    vectors = VectorRepository(database, space=SPACE)
    ids = [text.id for text in (mine, theirs, foreign, hidden)] + [uuid4()]
    everybodys = await vectors.of_texts(ids)
    assert set(everybodys) == {mine.id, theirs.id, hidden.id}
    assert np.array_equal(everybodys[mine.id], rounded(mine))
    assert everybodys[mine.id].dtype == np.float32
    assert set(await vectors.of_texts(ids, holder=key.holder_id)) == {mine.id}
    assert await vectors.of_texts([]) == {}
    result = await vectors.texts_of([predictions[0].id, uuid4()], holder=key.holder_id)
    assert result == {predictions[0].id: mine.id}
    assert await vectors.texts_of([predictions[0].id], holder=other.holder_id) == {}


async def test_the_latest_word_that_tells_a_label_is_the_truth(database: Database) -> None:
    key, other = await new_key(database), await new_key(database)
    text, silent, confirmed = new_text(), new_text(), new_text()
    (first,) = await store(database, key, text, version="1")
    (again,) = await store(database, key, text, version="2")
    (wrong,) = await store(database, key, silent)
    (right,) = await store(database, key, confirmed, label="neutral")
    labels = LabelRepository(database, space=SPACE)
    ids = [text.id, silent.id, confirmed.id]
    assert await labels.of_texts(ids, model="sentiment") == {}
    await judge(database, key, again, correct=False, label="negative")
    await judge(database, other, first, correct=False, label="neutral")
    await judge(database, key, wrong, correct=False)
    await judge(database, key, right, correct=True)
    results = {text.id: "neutral", confirmed.id: "neutral"}
    assert await labels.of_texts(ids, model="sentiment") == results
    assert await labels.of_texts(ids, model="another") == {}
    assert await labels.of_texts(ids, model="sentiment", holder=other.holder_id) == {}
    latest = await labels.latest("sentiment", most=10)
    assert {each.text_id: each.label for each in latest} == results
    by_text = {each.text_id: each.vector for each in latest}
    assert np.array_equal(by_text[text.id], rounded(text))
    assert [each.text_id for each in await labels.latest("sentiment", most=1)] == [confirmed.id]
    # As a statement sees it that was planned before a copy of the segment was attached, and runs after it was.
    await run_sql(database, "UPDATE segments SET state = 'retired'")
    assert {each.text_id: each.label for each in await labels.latest("sentiment", most=10)} == results


async def test_of_judgements_of_one_moment_both_readings_take_the_same(database: Database) -> None:
    keys = [await new_key(database) for _ in range(4)]
    text = new_text()
    (first,) = await store(database, keys[0], text, version="1")
    (second,) = await store(database, keys[0], text, version="2")
    for prediction in (first, second):
        for key, label in zip(keys, ("negative", "neutral", "negative", "neutral"), strict=True):
            await judge(database, key, prediction, correct=False, label=label)
    await run_sql(database, "UPDATE feedback SET updated_at = '2026-01-01'")
    labels = LabelRepository(database, space=SPACE)
    holder = min(key.holder_id for key in keys)
    wanted = "negative" if holder in (keys[0].holder_id, keys[2].holder_id) else "neutral"
    assert await labels.of_texts([text.id], model="sentiment") == {text.id: wanted}
    assert [each.label for each in await labels.latest("sentiment", most=1)] == [wanted]


async def test_a_small_window_is_sampled_whole_by_its_last_words(database: Database) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(20)]
    await store(database, key, *texts, version="1", label="neutral", confidence=0.5)
    await store(database, key, *texts[:10], version="2", scores=(0.25, 0.25, 0.5))
    await store(database, key, *texts, version="3", arm="shadow", label="negative")
    await store(database, key, *texts, model="another", label="negative")
    (judged,) = await store(database, key, texts[0], version="2")
    await judge(database, key, judged, correct=False)
    windows = WindowRepository(database, space=SPACE)
    sample = (await windows.sample("sentiment", window(), size=100)).texts
    results = {each.text_id: each for each in sample}
    assert set(results) == {text.id for text in texts}
    assert [each.prediction_id for each in sample] == sorted(each.prediction_id for each in sample)
    assert {results[text.id].version for text in texts[:10]} == {"2"}
    assert {results[text.id].version for text in texts[10:]} == {"1"}
    one = results[texts[1].id]
    assert (one.label, one.scores, one.text) == (
        "positive",
        {"negative": 0.25, "neutral": 0.25, "positive": 0.5},
        texts[1].content,
    )
    assert np.array_equal(one.vector, rounded(texts[1]))
    assert [each.text_id for each in sample if each.judged] == [texts[0].id]
    given = await windows.list_judged("sentiment", window(), list(results))
    assert [(each.text_id, each.version, each.is_correct) for each in given] == [(texts[0].id, "2", False)]


async def test_samples_are_the_same_from_a_seed_and_differ_between_seeds(database: Database) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(60)]
    await store(database, key, *texts)
    windows = WindowRepository(database, space=SPACE)

    async def drawn(seed: int, size: int = 20) -> set[UUID]:
        sample = await windows.sample("sentiment", window(), size=size, seed=seed)
        return {each.text_id for each in sample.texts}

    assert len(await drawn(1)) == 20
    assert await drawn(1) == await drawn(1)
    assert await drawn(1) != await drawn(2)
    assert await drawn(1) < await drawn(1, 40)


async def test_a_window_has_bounds(database: Database) -> None:
    key = await new_key(database)
    result = await store(database, key, *[new_text() for _ in range(30)])
    windows = WindowRepository(database, space=SPACE)
    cut = uuid7_time(result[10].id)
    before = (await windows.sample("sentiment", Window(since=window().since, until=cut), size=99)).texts
    after = (await windows.sample("sentiment", Window(since=cut, until=window().until), size=99)).texts
    assert len(before) + len(after) == 30
    assert {each.prediction_id for each in before} == {
        each.id for each in result if uuid7_time(each.id) < cut
    }
    nothing = WindowSample(texts=[], coverage=Coverage(predictions=0, read=0, exact=True))
    assert await windows.sample("sentiment", Window(since=cut, until=cut), size=99) == nothing
    assert await windows.list_judged("sentiment", Window(since=cut, until=cut), [result[0].text_id]) == []


async def test_a_crowd_is_sampled_evenly_however_it_came(database: Database) -> None:
    """All came within a second of the week: the first evening, or a nightly import."""
    key = await new_key(database)
    texts = [new_text() for _ in range(600)]
    rows = await store(database, key, *texts)
    await store(database, key, *texts, version="3", arm="shadow")
    drawn = await WindowRepository(database, space=SPACE, read=400).sample("sentiment", window(), size=500)
    coverage = drawn.coverage
    assert not coverage.exact
    assert len(drawn.texts) == coverage.read
    # Of 1,200 a third is drawn, and half of these are shadows: 200 of 600, give or take seven deviations.
    assert 120 < coverage.read < 280
    assert coverage.predictions == pytest.approx(600, rel=0.4)
    late = {row.text_id for row in rows[300:]}
    assert 0.3 < sum(each.text_id in late for each in drawn.texts) / coverage.read < 0.7


async def test_a_model_with_little_of_the_traffic_is_found(database: Database) -> None:
    key = await new_key(database)
    await store(database, key, *[new_text() for _ in range(300)])
    rare = await store(database, key, *[new_text() for _ in range(3)], model="rare")
    drawn = await WindowRepository(database, space=SPACE, read=30).sample("rare", window(), size=20)
    assert {each.prediction_id for each in drawn.texts} == {row.id for row in rare}
    assert drawn.coverage == Coverage(predictions=3, read=3, exact=True)


async def test_disagreements_count_pairs_and_show_the_requested_pair(database: Database) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(12)]
    for text, label in zip(texts, ["negative", "neutral", "positive"] * 4, strict=True):
        await store(database, key, text, version="1", label="negative")
        await store(database, key, text, version="2", label=label, arm="shadow", confidence=0.5)
    await store(database, key, new_text(), version="1")
    await store(database, key, texts[0], version="2", label="positive")
    disagreements = DisagreementRepository(database, space=SPACE)
    result = await disagreements.compare("sentiment", "1", "2", window(), size=100)
    assert result.matrix == {
        ("negative", "negative"): 3,
        ("negative", "neutral"): 4,
        ("negative", "positive"): 5,
    }
    assert {each.text_id for each in result.differences} == {
        text.id for at, text in enumerate(texts) if at % 3 or at == 0
    }
    assert result.complete
    outcome = await disagreements.compare(
        "sentiment", "1", "2", window(), one_label="negative", other_label="neutral", size=3
    )
    assert [each.other.label for each in outcome.differences] == ["neutral"] * 3
    assert outcome.matrix == result.matrix
    one = outcome.differences[0]
    assert (one.one.label, one.other.confidence) == ("negative", 0.5)
    content = {text.id: text for text in texts}[one.text_id]
    assert one.text == content.content
    assert np.array_equal(one.vector, rounded(content))
    back = await disagreements.compare("sentiment", "2", "1", window(), size=100)
    assert back.matrix["positive", "negative"] == 5
    none = await disagreements.compare("sentiment", "1", "9", window(), size=100)
    assert (none.matrix, none.differences, none.complete) == ({}, [], True)


async def test_a_contrast_reads_a_bounded_part_and_says_so(database: Database) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(10)]
    for version in ("1", "2"):
        await store(database, key, *texts, version=version, label="positive" if version == "1" else "neutral")
    few = await DisagreementRepository(database, space=SPACE, scanned=5).compare(
        "sentiment", "1", "2", window(), size=9
    )
    assert (sum(few.matrix.values()), few.complete) == (5, False)
    fewer = await DisagreementRepository(database, space=SPACE, compared=3).compare(
        "sentiment", "1", "2", window(), size=9
    )
    assert (sum(fewer.matrix.values()), fewer.complete) == (3, False)
    empty = Window(since=now(), until=now() - timedelta(hours=1))
    assert (
        await DisagreementRepository(database, space=SPACE).compare("sentiment", "1", "2", empty, size=9)
    ).matrix == {}
