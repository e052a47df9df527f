"""What analytics reads: fakes and PostgreSQL alike."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from db.accounts.keys import Key
from db.analytics.disagreements import Disagreement, Disagreements, VersionAnswer
from db.analytics.labels import LabelledText
from db.analytics.windows import Coverage, JudgedPrediction, SampledText, Window
from db.predictions.feedback import NewFeedback
from db.predictions.submissions import NewPrediction, NewText, Submission
from tests.support.repositories import Repositories
from tests.support.row_factories import add_key, new_prediction, new_text

pytestmark = pytest.mark.anyio

MODEL = "sentiment"
HOUR = timedelta(hours=1)


@pytest.fixture
def window() -> Window:
    now = datetime.now(UTC)
    return Window(since=now - HOUR, until=now + HOUR)


def before(window: Window) -> Window:
    return Window(since=window.since - HOUR, until=window.since)


def empty(window: Window) -> Window:
    return Window(since=window.until, until=window.since)


async def predict(repositories: Repositories, key: Key, text: NewText, **values: Any) -> NewPrediction:
    row = new_prediction(key, text, **values)
    await repositories.writer.commit([Submission(texts=[text], predictions=[row])])
    return row


async def judge(
    repositories: Repositories,
    row: NewPrediction,
    key: Key,
    *,
    is_correct: bool = False,
    label: str | None = None,
) -> None:
    feedback = NewFeedback(
        prediction_id=row.id, holder_id=key.holder_id, key_id=key.id, is_correct=is_correct, label=label
    )
    await repositories.feedback.put(feedback)


async def test_the_last_judgement_tells_a_texts_label(repositories: Repositories) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    texts = [new_text() for _ in range(5)]
    first, second, third, fourth, fifth = [await predict(repositories, key, text) for text in texts]
    later = await predict(repositories, other, texts[0], label="negative")
    foreign = await predict(repositories, key, texts[4], model="other")
    await judge(repositories, later, other, is_correct=True)
    await judge(repositories, first, key, label="neutral")
    await judge(repositories, second, key, is_correct=True)
    await judge(repositories, third, key)
    await judge(repositories, fourth, key, is_correct=True)
    await judge(repositories, fourth, other, label="negative")
    await judge(repositories, foreign, key, is_correct=True)
    ids = [*(text.id for text in texts), uuid4()]
    of_texts, latest = repositories.labels.of_texts, repositories.labels.latest
    labels = {texts[0].id: "neutral", texts[1].id: "positive", texts[3].id: "negative"}
    assert await of_texts(ids, model=MODEL) == labels
    assert await of_texts(ids, model=MODEL, holder=key.id) == labels
    assert await of_texts(ids, model=MODEL, holder=other.id) == {texts[0].id: "negative"}
    assert await of_texts(ids, model="other") == {texts[4].id: "positive"}
    assert await of_texts([texts[1].id], model=MODEL) == {texts[1].id: "positive"}
    assert await of_texts([], model=MODEL) == {}
    labelled = await latest(MODEL, most=100)
    assert [type(each) for each in labelled] == [LabelledText] * 3
    assert [(each.text_id, each.label) for each in labelled] == sorted(labels.items())
    for each in labelled:
        (text,) = [text for text in texts if text.id == each.text_id]
        assert (each.vector.dtype, each.vector.shape) == (np.float32, (384,))
        assert each.vector.astype("<f2").tobytes() == text.embedding
    # The two latest judged predictions: another model's, and a second answer to the first text, whose first answer was
    # judged after it.
    assert [(each.text_id, each.label) for each in await latest(MODEL, most=2)] == [(texts[0].id, "neutral")]
    assert list(await latest("unknown", most=10)) == []
    assert fifth.id not in labels


async def test_a_judged_shadow_tells_no_label(repositories: Repositories) -> None:
    key = await add_key(repositories.keys)
    texts = [new_text() for _ in range(2)]
    answered = await predict(repositories, key, texts[0])
    hidden = [await predict(repositories, key, text, arm="shadow", label="negative") for text in texts]
    await judge(repositories, answered, key, is_correct=True)
    for row in hidden:
        await judge(repositories, row, key, is_correct=True)
    labels = {texts[0].id: "positive"}
    assert await repositories.labels.of_texts([text.id for text in texts], model=MODEL) == labels
    labelled = await repositories.labels.latest(MODEL, most=10)
    assert {each.text_id: each.label for each in labelled} == labels


async def test_what_a_version_does_not_support_has_a_label_but_is_no_example(
    repositories: Repositories, window: Window
) -> None:
    key = await add_key(repositories.keys)
    texts = [new_text(f"text {number}") for number in range(3)]
    known = await predict(repositories, key, texts[0])
    foreign = await predict(repositories, key, texts[1], language="de", supported=False)
    unknown = await predict(repositories, key, texts[2], supported=False, mostly_unknown=True)
    for row in (known, foreign, unknown):
        await judge(repositories, row, key, is_correct=True)
    labels = await repositories.labels.of_texts([text.id for text in texts], model=MODEL)
    assert labels == dict.fromkeys((text.id for text in texts), "positive")
    assert [each.text_id for each in await repositories.labels.latest(MODEL, most=10)] == [texts[0].id]
    sampled = (await repositories.windows.sample(MODEL, window, size=100)).texts
    assert [each.supported for each in sampled] == [True, False, False]
    assert [each.mostly_unknown for each in sampled] == [False, False, True]


async def test_a_window_has_each_text_with_its_latest_prediction(
    repositories: Repositories, window: Window
) -> None:
    key = await add_key(repositories.keys)
    texts = [new_text(f"text {number}") for number in range(5)]
    rows = [await predict(repositories, key, text) for text in texts[:4]]
    newer = await predict(
        repositories, key, texts[0], version="10", label="negative", confidence=0.5, scores=(0.5, 0.25, 0.25)
    )
    await predict(repositories, key, texts[1], model="other")
    await predict(repositories, key, texts[4], arm="shadow")
    await judge(repositories, rows[0], key)
    await judge(repositories, rows[2], key, is_correct=True)
    whole = await repositories.windows.sample(MODEL, window, size=100)
    assert whole.coverage == Coverage(predictions=5, read=5, exact=True)
    found = whole.texts
    assert [type(each) for each in found] == [SampledText] * 4
    assert [each.prediction_id for each in found] == [rows[1].id, rows[2].id, rows[3].id, newer.id]
    assert [each.text for each in found] == ["text 1", "text 2", "text 3", "text 0"]
    assert [each.judged for each in found] == [False, True, False, True]
    last = found[-1]
    assert (last.text_id, last.version, last.label, last.confidence) == (texts[0].id, "10", "negative", 0.5)
    assert last.scores == {"negative": 0.5, "neutral": 0.25, "positive": 0.25}
    assert (last.vector.dtype, last.vector.shape) == (np.float32, (384,))
    assert last.vector.astype("<f2").tobytes() == texts[0].embedding

    async def sample(model: str, within: Window, size: int, seed: int = 0) -> Sequence[SampledText]:
        return (await repositories.windows.sample(model, within, size=size, seed=seed)).texts

    few = await sample(MODEL, window, size=2, seed=7)
    assert len(few) == 2
    assert {each.prediction_id for each in few} < {each.prediction_id for each in found}
    assert [each.prediction_id for each in few] == sorted(each.prediction_id for each in few)
    assert [each.text for each in await sample("other", window, size=9)] == ["text 1"]
    for other in (before(window), empty(window)):
        assert list(await sample(MODEL, other, size=100)) == []


async def test_judged_predictions_have_their_last_judgement(
    repositories: Repositories, window: Window
) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    texts = [new_text() for _ in range(3)]
    first, second, _ = [await predict(repositories, key, text) for text in texts]
    newer = await predict(repositories, other, texts[0], version="10")
    shadow = await predict(repositories, key, texts[0], arm="shadow")
    foreign = await predict(repositories, key, texts[0], model="other")
    for row in (first, newer, shadow, foreign):
        await judge(repositories, row, key, is_correct=True)
    await judge(repositories, first, other, is_correct=True)
    await judge(repositories, first, key)
    await judge(repositories, second, key)
    await judge(repositories, second, other, is_correct=True)
    list_judged = repositories.windows.list_judged

    def judged(text: NewText, version: str, *, is_correct: bool) -> JudgedPrediction:
        return JudgedPrediction(text_id=text.id, version=version, is_correct=is_correct)

    ids = [*(text.id for text in texts), uuid4()]
    assert list(await list_judged(MODEL, window, ids)) == [
        judged(texts[0], "2", is_correct=False),
        judged(texts[1], "2", is_correct=True),
        judged(texts[0], "10", is_correct=True),
    ]
    assert list(await list_judged(MODEL, window, ids[1:])) == [judged(texts[1], "2", is_correct=True)]
    assert list(await list_judged("other", window, ids)) == [judged(texts[0], "2", is_correct=True)]
    assert list(await list_judged(MODEL, window, [])) == []
    for other_window in (before(window), empty(window)):
        assert list(await list_judged(MODEL, other_window, ids)) == []


async def test_two_versions_are_compared_text_by_text(repositories: Repositories, window: Window) -> None:
    key = await add_key(repositories.keys)
    texts = sorted((new_text() for _ in range(5)), key=lambda text: text.id)
    answers = [
        ("negative", "positive"),
        ("negative", "neutral"),
        ("neutral", "neutral"),
        ("neutral", "positive"),
    ]
    rows: dict[tuple[UUID, str], NewPrediction] = {}
    await predict(repositories, key, texts[0], version="1", label="positive")
    for text, labels in zip(texts, answers, strict=False):
        for version, label in zip(("1", "2"), labels, strict=True):
            arm = "shadow" if version == "1" else "champion"
            rows[text.id, version] = await predict(
                repositories, key, text, version=version, label=label, arm=arm
            )
    await predict(repositories, key, texts[4], version="1", label="positive")
    await predict(repositories, key, texts[4], version="2", label="negative", model="other")
    compare = repositories.disagreements.compare

    def answer(text: NewText, version: str) -> VersionAnswer:
        row = rows[text.id, version]
        return VersionAnswer(prediction_id=row.id, label=row.label, confidence=row.confidence)

    found = await compare(MODEL, "1", "2", window, size=10)
    assert type(found) is Disagreements
    assert found.complete
    assert dict(found.matrix) == dict.fromkeys(answers, 1)
    assert [each.text_id for each in found.differences] == [texts[0].id, texts[1].id, texts[3].id]
    for each in found.differences:
        (text,) = [text for text in texts if text.id == each.text_id]
        assert type(each) is Disagreement
        assert (each.text, each.one, each.other) == (text.content, answer(text, "1"), answer(text, "2"))
        assert (each.vector.dtype, each.vector.astype("<f2").tobytes()) == (np.float32, text.embedding)
    narrowed = await compare(MODEL, "1", "2", window, one_label="negative", size=10)
    assert [each.text_id for each in narrowed.differences] == [texts[0].id, texts[1].id]
    assert narrowed.matrix == found.matrix
    both = await compare(MODEL, "1", "2", window, one_label="negative", other_label="neutral", size=10)
    assert [each.text_id for each in both.differences] == [texts[1].id]
    back = await compare(MODEL, "2", "1", window, other_label="neutral", size=10)
    assert [each.text_id for each in back.differences] == [texts[3].id]
    assert dict(back.matrix) == {(other, one): 1 for one, other in answers}
    few = await compare(MODEL, "1", "2", window, size=1)
    assert len(few.differences) == 1
    for other_window in (before(window), empty(window)):
        none = await compare(MODEL, "1", "2", other_window, size=10)
        assert (dict(none.matrix), list(none.differences), none.complete) == ({}, [], True)
