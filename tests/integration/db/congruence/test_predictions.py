"""The writer, idempotency, predictions and feedback: fakes and PostgreSQL alike."""

from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from db.accounts.keys import Key
from db.errors import Contradictory, NotFound, Rejected
from db.predictions.feedback import Judgement, NewFeedback
from db.predictions.predictions import Prediction, PredictionFilters
from db.predictions.submissions import Failed, Mismatch, NewPrediction, Replayed, Stored, Submission
from tests.support.repositories import Repositories
from tests.support.row_factories import (
    add_key,
    field_names,
    new_idempotency,
    new_prediction,
    new_submission,
    new_text,
)

pytestmark = pytest.mark.anyio


def read(row: NewPrediction, text: str, *feedback: Judgement) -> Prediction:
    """Return a new prediction as it is read again."""
    values = {name: getattr(row, name) for name in field_names(NewPrediction)}
    scores = dict(zip(("negative", "neutral", "positive"), row.scores, strict=True))
    return Prediction(**(values | {"scores": scores}), text=text, feedback=feedback)


async def store(repositories: Repositories, *submissions: Submission) -> None:
    assert await repositories.writer.commit(submissions) == [Stored()] * len(submissions)


async def ids(repositories: Repositories, filters: PredictionFilters, **scope: object) -> list[object]:
    page = await repositories.predictions.list(filters, **scope)
    assert page.next_cursor is None
    return [each.id for each in page.items]


async def test_a_submission_is_read_as_it_was_stored(repositories: Repositories) -> None:
    key = await add_key(repositories.keys)
    user = await repositories.users.create(username="ada", email="ada@example.org", actor=None)
    one, two = new_text("one ü 🙂\n"), new_text("")
    rows = [
        new_prediction(key, one, user_id=user.id, unit="unit", arm="shadow", truncated=True, request_id=""),
        new_prediction(
            key,
            two,
            scores=(1.0, 0.0, 0.0),
            confidence=1.0,
            language="und",
            supported=False,
            mostly_unknown=True,
        ),
        new_prediction(key, one, model="other", version="10"),
    ]
    await store(repositories, Submission(texts=[one, two, one], predictions=rows))
    assert await repositories.writer.commit([]) == []
    for row, text in zip(rows, (one, two, one), strict=True):
        prediction = await repositories.predictions.get(row.id)
        assert prediction == read(row, text.content)
        assert type(prediction.scores) is dict
    vectors = await repositories.vectors.of_texts([one.id, two.id])
    assert {text_id: vector.astype("<f2").tobytes() for text_id, vector in vectors.items()} == {
        one.id: one.embedding,
        two.id: two.embedding,
    }


async def test_a_text_keeps_its_first_content_and_vector(repositories: Repositories) -> None:
    key, text = await add_key(repositories.keys), new_text("the same")
    await store(repositories, new_submission(key, [text]))
    later = replace(new_text("the same"), content="changed")
    assert later.id == text.id
    await store(repositories, new_submission(key, [later, later]), new_submission(key, [later]))
    page = await repositories.predictions.list()
    assert [each.text for each in page.items] == ["the same"] * 4
    (vector,) = (await repositories.vectors.of_texts([text.id])).values()
    assert vector.astype("<f2").tobytes() == text.embedding


async def test_a_refused_submission_fails_alone(repositories: Repositories) -> None:
    key, text = await add_key(repositories.keys), new_text()
    stored = new_submission(key, [text])
    await store(repositories, stored)
    short = replace(new_text(), embedding=b"\0\0")
    refused = [
        new_submission(key, [new_text("a\0b")]),
        new_submission(key, [short]),
        new_submission(key, user_id=uuid4()),
        new_submission(key, key_id=uuid4()),
        new_submission(key, arm="left"),
        new_submission(key, confidence=1.5),
        new_submission(key, [new_text()], id=stored.predictions[0].id),
    ]
    good = new_submission(key)
    outcomes = await repositories.writer.commit([*refused[:4], good, *refused[4:]])
    assert outcomes[4] == Stored()
    failures = outcomes[:4] + outcomes[5:]
    assert [type(each) for each in failures] == [Failed] * len(refused)
    assert [type(each.error) for each in failures if isinstance(each, Failed)] == [Rejected] * len(refused)
    page = await repositories.predictions.list()
    assert [each.id for each in page.items] == [good.predictions[0].id, stored.predictions[0].id]
    texts = [each.texts[0].id for each in refused]
    assert await repositories.vectors.of_texts(texts) == {}


async def test_a_repeated_request_is_replayed_or_a_mismatch(repositories: Repositories) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    first = new_submission(key, idempotency=new_idempotency(key, "once", answer=b"first"))
    await store(repositories, first)
    answer = await repositories.idempotency.find(key.id, "/v1/predict", "once")
    assert answer is not None
    assert (answer.status, answer.answer) == (201, b"first")
    assert answer.body_digest == new_idempotency(key, "once").body_digest
    for holder, route, name in (
        (other.id, "/v1/predict", "once"),
        (key.id, "/v1/feedback", "once"),
        (key.id, "/v1/predict", "twice"),
    ):
        assert await repositories.idempotency.find(holder, route, name) is None
    outcomes = await repositories.writer.commit(
        [
            new_submission(key, idempotency=new_idempotency(key, "once", answer=b"second")),
            new_submission(key, idempotency=new_idempotency(key, "once", body=b"another")),
            new_submission(other, idempotency=new_idempotency(other, "once", answer=b"other")),
            new_submission(key, idempotency=new_idempotency(key, "new", answer=b"new")),
            new_submission(key, idempotency=new_idempotency(key, "new", answer=b"newer")),
            new_submission(key, idempotency=new_idempotency(key, "new", body=b"another")),
            new_submission(key, [new_text("a\0b")], idempotency=new_idempotency(key, "bad")),
            new_submission(key, idempotency=new_idempotency(key, "bad", answer=b"good")),
            new_submission(key),
        ]
    )
    assert outcomes[:6] == [
        Replayed(status=201, answer=b"first"),
        Mismatch(),
        Stored(),
        Stored(),
        Replayed(status=201, answer=b"new"),
        Mismatch(),
    ]
    assert type(outcomes[6]) is Failed
    assert outcomes[7:] == [Stored(), Stored()]
    assert len((await repositories.predictions.list()).items) == 5
    answer = await repositories.idempotency.find(key.id, "/v1/predict", "bad")
    assert answer is not None
    assert answer.answer == b"good"


async def test_lists_are_narrowed_by_every_filter(repositories: Repositories) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    user = await repositories.users.create(username="ada", email="ada@example.org", actor=None)
    texts = [new_text() for _ in range(5)]
    rows = [
        new_prediction(key, texts[0]),
        new_prediction(key, texts[1], label="negative", user_id=user.id),
        new_prediction(key, texts[2], model="other", version="1"),
        new_prediction(other, texts[3], arm="shadow", label="negative"),
        new_prediction(other, texts[4], version="10"),
    ]
    await store(
        repositories,
        Submission(texts=texts[:3], predictions=rows[:3]),
        Submission(texts=texts[3:], predictions=rows[3:]),
    )
    judged = NewFeedback(prediction_id=rows[4].id, holder_id=key.id, key_id=key.id, is_correct=False)
    await repositories.feedback.put(judged)
    moments = [(await repositories.predictions.get(row.id)).predicted_at for row in rows]
    cases: list[tuple[dict[str, object], list[int]]] = [
        ({}, [4, 3, 2, 1, 0]),
        ({"sentiment": "negative"}, [3, 1]),
        ({"model": "sentiment"}, [4, 3, 1, 0]),
        ({"model_version": "1"}, [2]),
        ({"arm": "shadow"}, [3]),
        ({"user_id": user.id}, [1]),
        ({"user_id": uuid4()}, []),
        ({"has_feedback": True}, [4]),
        ({"has_feedback": False}, [3, 2, 1, 0]),
        (
            {"since": moments[0] - timedelta(hours=1), "until": moments[4] + timedelta(hours=1)},
            [4, 3, 2, 1, 0],
        ),
        ({"until": moments[0] - timedelta(hours=1)}, []),
        ({"since": moments[4] + timedelta(hours=1)}, []),
        ({"sentiment": "positive", "model": "sentiment", "model_version": "2", "arm": "champion"}, [0]),
    ]
    for values, places in cases:
        filters = PredictionFilters(**values)  # type: ignore[arg-type]
        assert await ids(repositories, filters) == [rows[place].id for place in places], values
        own = [rows[place].id for place in places if place < 3]
        assert await ids(repositories, filters, holder=key.id) == own, values
        assert await ids(repositories, filters, holder=uuid4()) == [], values


async def test_pages_follow_each_other_newest_first(repositories: Repositories) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    for number in range(7):
        await store(repositories, new_submission(key if number % 2 else other, [new_text()] * 2))
    predictions = repositories.predictions
    everything = (await predictions.list()).items
    assert [each.id for each in everything] == sorted((each.id for each in everything), reverse=True)
    pages, cursor = [], None
    for _ in range(5):
        page = await predictions.list(limit=3, cursor=cursor)
        pages.append(page.items)
        cursor = page.next_cursor
    assert [len(page) for page in pages] == [3, 3, 3, 3, 2]
    assert cursor is None
    assert sum(pages, ()) == everything
    exact = await predictions.list(limit=6, holder=key.id)
    assert (len(exact.items), exact.next_cursor) == (6, None)
    for cursor in ("x", "no cursor", "AAAA", str(uuid4())):
        with pytest.raises(Rejected):
            await predictions.list(cursor=cursor)


async def test_one_prediction_is_its_holders(repositories: Repositories) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    stored = new_submission(key)
    await store(repositories, stored)
    (row,) = stored.predictions
    prediction = await repositories.predictions.get(row.id, holder=key.id)
    assert prediction == await repositories.predictions.get(row.id)
    for prediction_id, holder in ((row.id, other.id), (uuid4(), None), (uuid4(), key.id)):
        with pytest.raises(NotFound):
            await repositories.predictions.get(prediction_id, holder=holder)


def judgement(row: NewPrediction, key: Key, **values: object) -> NewFeedback:
    fields = {"prediction_id": row.id, "holder_id": key.holder_id, "key_id": key.id, "is_correct": False}
    return NewFeedback(**(fields | values))  # type: ignore[arg-type]


async def test_feedback_is_replaced_by_its_holder_alone(repositories: Repositories) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    stored = new_submission(key)
    await store(repositories, stored)
    (row,) = stored.predictions
    put = repositories.feedback.put
    first = await put(judgement(row, key, label="neutral", comment="no ü"), scope=key.id)
    second = await put(judgement(row, other, is_correct=True))
    replaced = await put(judgement(row, key, is_correct=True), scope=key.id)
    assert type(first) is Judgement
    assert (first.prediction_id, first.holder_id) == (row.id, key.id)
    assert (first.is_correct, first.label, first.comment) == (False, "neutral", "no ü")
    assert (replaced.is_correct, replaced.label, replaced.comment) == (True, None, None)
    assert replaced.created_at == first.created_at <= first.updated_at < replaced.updated_at
    prediction = await repositories.predictions.get(row.id)
    assert prediction.feedback == (replaced, second)
    assert (await repositories.predictions.list()).items == (prediction,)
    with pytest.raises(NotFound):
        await put(judgement(row, other), scope=other.id)
    with pytest.raises(NotFound):
        await put(replace(judgement(row, key), prediction_id=uuid4()))
    with pytest.raises(Rejected):
        await put(replace(judgement(row, key), key_id=uuid4()))
    assert (await repositories.predictions.get(row.id)).feedback == (replaced, second)


async def test_feedback_that_contradicts_itself_is_refused_with_both_readings(
    repositories: Repositories,
) -> None:
    key = await add_key(repositories.keys)
    stored = new_submission(key, label="positive")
    await store(repositories, stored)
    (row,) = stored.predictions
    put, once = repositories.feedback.put, new_idempotency(key, "once")
    with pytest.raises(Contradictory, match="true says that positive is right, and the label says negative"):
        await put(judgement(row, key, is_correct=True, label="negative"), idempotency=once)
    with pytest.raises(Contradictory, match="false says that positive is wrong, and the label says positive"):
        await put(judgement(row, key, label="positive"), scope=key.id)
    assert await repositories.idempotency.find(key.id, once.route, "once") is None
    assert (await repositories.predictions.get(row.id)).feedback == ()
    with pytest.raises(NotFound):
        await put(judgement(row, key, label="positive"), scope=uuid4())
    for is_correct, label in ((True, "positive"), (False, "neutral")):
        given = await put(judgement(row, key, is_correct=is_correct, label=label))
        assert type(given) is Judgement
        assert (given.is_correct, given.label) == (is_correct, label)


async def test_repeated_feedback_is_replayed_or_a_mismatch(repositories: Repositories) -> None:
    key, other = [await add_key(repositories.keys) for _ in range(2)]
    stored = new_submission(key)
    await store(repositories, stored)
    (row,) = stored.predictions
    put, once = repositories.feedback.put, new_idempotency(key, "once", answer=b"fixed")
    with pytest.raises(NotFound):
        await put(judgement(row, other), scope=other.id, idempotency=replace(once, key="scoped"))
    assert await repositories.idempotency.find(key.id, once.route, "scoped") is None
    first = await put(
        judgement(row, key, comment="no"), idempotency=once, render=lambda each: str(each.comment).encode()
    )
    assert type(first) is Judgement
    again = judgement(row, key, is_correct=True)
    assert await put(again, idempotency=once) == Replayed(status=201, answer=b"no")
    assert await put(again, idempotency=new_idempotency(key, "once", body=b"another")) == Mismatch()
    unknown = replace(again, prediction_id=uuid4())
    assert await put(unknown, idempotency=once) == Replayed(status=201, answer=b"no")
    assert (await repositories.predictions.get(row.id)).feedback == (first,)
    plain = replace(once, key="plain")
    await put(again, idempotency=plain)
    answer = await repositories.idempotency.find(key.id, once.route, "plain")
    assert answer is not None
    assert answer.answer == b"fixed"
