"""Samples of stored texts: bounded, random, preferring those with feedback."""

from uuid import UUID

import pytest

from db.analytics.replay import ReplayRepository
from db.connection.engine import Database
from db.predictions.feedback import FeedbackRepository, NewFeedback
from tests.support.postgres import SPACE
from tests.support.row_factories import new_key, new_submission, new_text, new_writer

pytestmark = pytest.mark.anyio


async def test_a_sample_is_bounded_random_and_repeatable(database: Database) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(60)]
    await new_writer(database).commit([new_submission(key, texts)])
    replays = ReplayRepository(database, space=SPACE)
    start = UUID(int=1 << 126)
    first = await replays.sample("sentiment", size=20, judged=10, start=start)
    assert [each.text_id for each in first] == [
        each.text_id for each in await replays.sample("sentiment", size=20, judged=10, start=start)
    ]
    assert len(first) == 20
    others = await replays.sample("sentiment", size=20, judged=10, start=UUID(int=3 << 126))
    assert {each.text_id for each in others} != {each.text_id for each in first}
    # After the last id it continues from the first.
    ends = await replays.sample("sentiment", size=20, judged=10, start=UUID(int=(1 << 128) - 1))
    assert len(ends) == 20
    everything = await replays.sample("sentiment", size=500, judged=10)
    assert {each.text_id for each in everything} == {text.id for text in texts}
    one = everything[0]
    assert (one.vector.shape, one.label, one.corrected, one.judged) == ((384,), "positive", None, False)
    assert one.text in {text.content for text in texts}


async def test_what_has_feedback_is_there_with_the_label_that_it_tells(database: Database) -> None:
    key, other = await new_key(database), await new_key(database)
    submission = new_submission(key, [new_text() for _ in range(40)])
    await new_writer(database).commit([submission])
    right, wrong, blamed, changed = (prediction.id for prediction in submission.predictions[:4])
    store = FeedbackRepository(database)

    async def judge(prediction: UUID, *, correct: bool, label: str | None = None, by: object = key) -> None:
        await store.put(
            NewFeedback(
                prediction_id=prediction,
                holder_id=by.holder_id,  # type: ignore[attr-defined]
                key_id=by.id,  # type: ignore[attr-defined]
                is_correct=correct,
                label=label,
            )
        )

    await judge(right, correct=True)
    await judge(wrong, correct=False, label="negative")
    await judge(blamed, correct=False)
    await judge(changed, correct=True)
    await judge(changed, correct=False, label="neutral", by=other)
    result = await ReplayRepository(database, space=SPACE).sample(
        "sentiment", size=1, judged=100, start=UUID(int=0)
    )
    judged = {each.text_id: each.corrected for each in result if each.judged}
    texts = {prediction.id: prediction.text_id for prediction in submission.predictions}
    assert judged == {
        texts[right]: "positive",
        texts[wrong]: "negative",
        texts[blamed]: None,
        texts[changed]: "neutral",
    }
    assert len(result) in (4, 5)
    of_another = await ReplayRepository(database, space=SPACE).sample("other", size=9, judged=9)
    assert not any(each.judged for each in of_another)


async def test_texts_without_a_vector_in_the_space_are_left_out(database: Database) -> None:
    key = await new_key(database)
    await new_writer(database).commit([new_submission(key)])
    assert not await ReplayRepository(database, space="another").sample("sentiment", size=9, judged=9)
