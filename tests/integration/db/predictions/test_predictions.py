"""Stored predictions: by id, by filters, in pages, each holder only his own."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from db.accounts.users import UserRepository
from db.connection.engine import Database
from db.core.ids import uuid7_floor, uuid7_time
from db.errors import NotFound, Rejected
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.predictions.partitions import Partitions
from db.predictions.predictions import PredictionFilters, PredictionRepository
from tests.support.row_factories import new_key, new_submission, new_text, new_writer, now, run_sql

pytestmark = pytest.mark.anyio


async def test_an_unknown_or_foreign_prediction_is_not_found(database: Database) -> None:
    key = await new_key(database)
    request = new_submission(key)
    await new_writer(database).commit([request])
    predictions = PredictionRepository(database)
    assert (await predictions.get(request.predictions[0].id, holder=key.holder_id)).holder_id == key.id
    with pytest.raises(NotFound):
        await predictions.get(request.predictions[0].id, holder=uuid4())
    with pytest.raises(NotFound):
        await predictions.get(uuid4())


async def test_pages_are_newest_first_without_gap_or_repetition(database: Database) -> None:
    key = await new_key(database)
    request = new_submission(key, [new_text() for _ in range(23)])
    await new_writer(database).commit([request])
    predictions = PredictionRepository(database)
    seen, cursor, pages = [], None, 0
    while True:
        page = await predictions.list(limit=5, cursor=cursor)
        seen += [prediction.id for prediction in page.items]
        pages += 1
        cursor = page.next_cursor
        if cursor is None:
            break
        await new_writer(database).commit([new_submission(key)])
    assert seen == [prediction.id for prediction in reversed(request.predictions)]
    assert pages == 5


async def test_a_full_last_page_has_no_cursor(database: Database) -> None:
    key = await new_key(database)
    await new_writer(database).commit([new_submission(key, [new_text() for _ in range(4)])])
    assert (await PredictionRepository(database).list(limit=4)).next_cursor is None


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "é", "AAAAAAAAAAAAAAAAAAAAAA' OR 1=1", "=" * 22])
async def test_a_cursor_that_no_page_gave_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(Rejected, match="cursor"):
        await PredictionRepository(database).list(cursor=cursor)


async def test_each_filter_narrows(database: Database) -> None:
    key, other = await new_key(database), await new_key(database)
    user = await UserRepository(database).create(username="u", email="u@example.org", actor=None)
    plain = new_submission(key)
    variants = {
        "sentiment": new_submission(key, label="negative"),
        "model": new_submission(key, model="tone"),
        "model_version": new_submission(key, version="7"),
        "arm": new_submission(key, arm="shadow"),
        "user_id": new_submission(key, user_id=user.id),
    }
    foreign = new_submission(other)
    await new_writer(database).commit([plain, *variants.values(), foreign])
    values = {
        "sentiment": "negative",
        "model": "tone",
        "model_version": "7",
        "arm": "shadow",
        "user_id": user.id,
    }
    predictions = PredictionRepository(database)
    for name, request in variants.items():
        page = await predictions.list(PredictionFilters(**{name: values[name]}))
        assert [prediction.id for prediction in page.items] == [request.predictions[0].id]
    page = await predictions.list(holder=other.holder_id)
    assert [prediction.id for prediction in page.items] == [foreign.predictions[0].id]
    await FeedbackRepository(database).put(
        NewFeedback(prediction_id=plain.predictions[0].id, holder_id=key.id, key_id=key.id, is_correct=True)
    )
    judged = await predictions.list(PredictionFilters(has_feedback=True))
    assert [prediction.id for prediction in judged.items] == [plain.predictions[0].id]
    assert len(judged.items[0].feedback) == 1
    assert len((await predictions.list(PredictionFilters(has_feedback=False))).items) == 6


async def test_since_is_included_until_is_not_and_other_months_are_not_touched(database: Database) -> None:
    key = await new_key(database)
    await Partitions(database).ensure(datetime(2030, 3, 1, tzinfo=UTC))
    moments = [datetime(2030, 3, 10, tzinfo=UTC) + timedelta(days=day) for day in range(3)]
    await new_writer(database).commit([new_submission(key, id=uuid7_floor(moment)) for moment in moments])
    page = await PredictionRepository(database).list(PredictionFilters(since=moments[0], until=moments[2]))
    assert [prediction.predicted_at for prediction in page.items] == [moments[1], moments[0]]
    plan = await run_sql(
        database,
        "EXPLAIN SELECT 1 FROM predictions WHERE id >= %s AND id < %s",
        uuid7_floor(moments[0]),
        uuid7_floor(moments[2]),
    )
    assert f"predictions_{now():%Y_%m}" not in str(plan)
    assert uuid7_time(uuid7_floor(moments[0])) == moments[0]


async def test_a_list_of_one_holder_reads_its_index(database: Database) -> None:
    plan = await run_sql(
        database,
        "EXPLAIN SELECT 1 FROM predictions WHERE holder_id = %s ORDER BY id DESC LIMIT 50",
        uuid4(),
    )
    assert "holder_id" in str(plan)
    assert "Seq Scan" not in str(plan)
