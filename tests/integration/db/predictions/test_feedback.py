"""Feedback and idempotency rows: one judgement a holder, one answer a key."""

import asyncio
import hashlib
from uuid import uuid4

import pytest

from db.connection.engine import Database
from db.core.ids import Uuid7Clock
from db.errors import NotFound
from db.predictions.feedback import FeedbackRepository, Judgement, NewFeedback
from db.predictions.idempotency import IdempotencyRepository
from db.predictions.predictions import PredictionRepository
from db.predictions.submissions import Mismatch, NewIdempotency, Replayed
from db.schema import revisions
from tests.support.row_factories import (
    count_rows,
    new_idempotency,
    new_key,
    new_submission,
    new_text,
    new_writer,
    run_sql,
)

pytestmark = pytest.mark.anyio


def render(judgement: Judgement) -> bytes:
    return f"{judgement.is_correct}".encode()


async def test_feedback_is_stored_with_its_prediction_and_replaced_by_the_same_holder(
    database: Database,
) -> None:
    key, engineer = await new_key(database), await new_key(database, role="engineer")
    request = new_submission(key)
    await new_writer(database).commit([request])
    prediction_id = request.predictions[0].id
    store = FeedbackRepository(database)
    first = await store.put(
        NewFeedback(
            prediction_id=prediction_id,
            holder_id=key.holder_id,
            key_id=key.id,
            is_correct=False,
            label="neutral",
            comment="no",
        ),
        scope=key.holder_id,
    )
    second = await store.put(
        NewFeedback(prediction_id=prediction_id, holder_id=key.holder_id, key_id=key.id, is_correct=True)
    )
    assert isinstance(first, Judgement)
    assert isinstance(second, Judgement)
    assert (first.is_correct, first.label, first.comment) == (False, "neutral", "no")
    assert (second.is_correct, second.label, second.comment) == (True, None, None)
    assert second.created_at == first.created_at < second.updated_at
    await store.put(
        NewFeedback(prediction_id=prediction_id, holder_id=engineer.id, key_id=engineer.id, is_correct=False)
    )
    stored = await PredictionRepository(database).get(prediction_id)
    assert [judgement.is_correct for judgement in stored.feedback] == [True, False]


async def test_feedback_on_an_unknown_or_foreign_prediction_is_not_found_and_claims_nothing(
    database: Database,
) -> None:
    key, stranger = await new_key(database), await new_key(database)
    request = new_submission(key)
    await new_writer(database).commit([request])
    for prediction_id in (uuid4(), Uuid7Clock().next(), request.predictions[0].id):
        with pytest.raises(NotFound):
            await FeedbackRepository(database).put(
                NewFeedback(
                    prediction_id=prediction_id,
                    holder_id=stranger.holder_id,
                    key_id=stranger.id,
                    is_correct=True,
                ),
                scope=stranger.holder_id,
                idempotency=new_idempotency(stranger, "k"),
            )
    assert await count_rows(database, "feedback") == await count_rows(database, "idempotency") == 0


async def test_concurrent_repetitions_of_feedback_get_one_answer(database: Database) -> None:
    key = await new_key(database)
    request = new_submission(key)
    await new_writer(database).commit([request])
    feedback = NewFeedback(
        prediction_id=request.predictions[0].id, holder_id=key.holder_id, key_id=key.id, is_correct=True
    )

    async def put(body: bytes) -> Judgement | Replayed | Mismatch:
        idempotency = new_idempotency(key, "k", body=body, answer=b"")
        return await FeedbackRepository(database).put(feedback, idempotency=idempotency, render=render)

    outcomes = await asyncio.gather(*(put(b"same") for _ in range(8)))
    assert len([outcome for outcome in outcomes if isinstance(outcome, Judgement)]) == 1
    assert outcomes.count(Replayed(status=201, answer=b"True")) == 7
    assert await put(b"another") == Mismatch()


async def test_a_kept_answer_is_found_for_a_day_and_then_swept(database: Database) -> None:
    key = await new_key(database)
    idempotency = IdempotencyRepository(database)
    await new_writer(database).commit(
        [new_submission(key, idempotency=new_idempotency(key, name)) for name in ("old", "new")]
    )
    await run_sql(
        database, "UPDATE idempotency SET created_at = now() - interval '24 hours 1 second' WHERE key = 'old'"
    )
    assert await idempotency.find(key.holder_id, "/v1/predict", "old") is None
    assert await idempotency.find(uuid4(), "/v1/predict", "new") is None
    assert await idempotency.find(key.holder_id, "/v1/feedback", "new") is None
    result = await idempotency.find(key.holder_id, "/v1/predict", "new")
    assert result is not None
    assert result.outcome(hashlib.sha256(b"body").digest()) == Replayed(status=201, answer=b"answer")
    assert result.outcome(b"another") == Mismatch()
    assert await idempotency.sweep() == 1
    assert await idempotency.sweep() == 0
    assert await count_rows(database, "idempotency") == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_an_answer_to_be_tried_again_is_never_kept(database: Database, status: int) -> None:
    key = await new_key(database)
    bad = NewIdempotency(
        holder_id=key.holder_id, route="r", key="k", body_digest=b"d", status=status, answer=b"a"
    )
    await new_writer(database).commit([new_submission(key, idempotency=bad)])
    assert await count_rows(database, "idempotency") == await count_rows(database, "predictions") == 0


async def test_an_upgrade_lets_the_label_of_contradictory_feedback_win_and_counts_it(
    url: str, database: Database
) -> None:
    key = await new_key(database)
    sent = new_submission(key, [new_text() for _ in range(4)], label="positive")
    await new_writer(database).commit([sent])
    given = [(True, "negative"), (False, "positive"), (True, "positive"), (False, None)]
    for prediction, (is_correct, label) in zip(sent.predictions, given, strict=True):
        await run_sql(
            database,
            "INSERT INTO feedback (prediction_id, holder_id, key_id, is_correct, label) VALUES (%s, %s, %s, %s, %s)",
            *(prediction.id, key.holder_id, key.id, is_correct, label),
        )
    revisions.downgrade(url, "0010")
    revisions.upgrade(url)
    rows = await run_sql(database, "SELECT is_correct, label FROM feedback ORDER BY prediction_id")
    assert rows == [(False, "negative"), (True, "positive"), (True, "positive"), (False, None)]
    revisions.downgrade(url, "0010")
    revisions.upgrade(url)
    counted = await run_sql(database, "SELECT detail FROM audit_log WHERE action = 'feedback.correct'")
    assert counted == [({"rows": 2},)]
