"""Retention: whole months are dropped once all in them has expired, and texts that nothing names; nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from db.accounts.keys import Key
from db.connection.engine import Database
from db.core.ids import uuid7_floor
from db.errors import Unavailable
from db.experiments.counts import CountRepository
from db.experiments.experiments import ExperimentRepository, NewExperiment
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.predictions.partitions import Partitions
from db.predictions.submissions import Stored
from db.privacy.retention import Retention
from serving.control.maintenance import Maintenance
from tests.support.postgres import SPACE
from tests.support.row_factories import count_rows, new_key, new_submission, new_text, new_writer, run_sql

pytestmark = pytest.mark.anyio

LONG_AGO = datetime(2025, 3, 10, tzinfo=UTC)
NOW = datetime.now(UTC)


async def store_prediction(database: Database, key: Key, at: datetime, text=None) -> UUID:
    """Store a prediction of that time, with feedback and its text."""
    await Partitions(database).ensure(at, months_ahead=0)
    text = text or new_text()
    identity = UUID(int=uuid7_floor(at).int | hash(text.id) & 0xFFFF_FFFF)
    assert await new_writer(database).commit([new_submission(key, [text], id=identity)]) == [Stored()]
    await run_sql(
        database, "UPDATE text_inputs SET created_at = least(created_at, %s) WHERE id = %s", at, text.id
    )
    await FeedbackRepository(database).put(
        NewFeedback(prediction_id=identity, holder_id=key.holder_id, key_id=key.id, is_correct=True)
    )
    return identity


async def months(database: Database) -> list[str]:
    rows = await run_sql(
        database,
        "SELECT relname FROM pg_class WHERE relispartition AND relname ~ '^(predictions|feedback)_20.._..$' "
        "ORDER BY relname",
    )
    return [name for (name,) in rows]


async def test_the_oldest_month_goes_with_its_feedback_once_all_in_it_is_over(database: Database) -> None:
    key = await new_key(database)
    old, recent = await store_prediction(database, key, LONG_AGO), await store_prediction(database, key, NOW)
    partitions = Partitions(database)
    # The 31st hasn't expired.
    assert await partitions.drop_oldest(datetime(2025, 3, 31, tzinfo=UTC), NOW) == datetime(
        2025, 2, 1, tzinfo=UTC
    )
    assert await partitions.drop_oldest(datetime(2025, 3, 31, tzinfo=UTC), NOW) is None
    assert await partitions.drop_oldest(datetime(2025, 4, 1, tzinfo=UTC), NOW) == datetime(
        2025, 3, 1, tzinfo=UTC
    )
    assert await partitions.drop_oldest(datetime(2025, 4, 1, tzinfo=UTC), NOW) is None
    assert {name[-7:] for name in await months(database)}.isdisjoint({"2025_02", "2025_03"})
    assert await run_sql(database, "SELECT id FROM predictions") == [(recent,)]
    assert await run_sql(database, "SELECT prediction_id FROM feedback") == [(recent,)]
    assert old != recent


async def test_months_that_are_made_ahead_stay_however_short_the_retention(database: Database) -> None:
    await Partitions(database).ensure(NOW)
    before = await months(database)
    assert await Partitions(database).drop_oldest(NOW + timedelta(days=300), NOW) is None
    assert await months(database) == before


async def test_a_month_stays_while_an_experiment_that_began_in_it_runs(database: Database) -> None:
    key = await new_key(database)
    await store_prediction(database, key, LONG_AGO)
    experiments = ExperimentRepository(database)
    experiment = await experiments.create(
        NewExperiment(model="sentiment", champion="2", challenger="3", share=0.5, shadow=False, salt="s"),
        actor=key.id,
    )
    await run_sql(database, "UPDATE experiments SET created_at = %s", LONG_AGO - timedelta(days=1))
    partitions = Partitions(database)
    assert await partitions.drop_oldest(NOW, NOW) == datetime(2025, 2, 1, tzinfo=UTC)
    assert await partitions.drop_oldest(NOW, NOW) is None
    await experiments.stop(experiment.id, actor=key.id, reason="over")
    assert await partitions.drop_oldest(NOW, NOW) == datetime(2025, 3, 1, tzinfo=UTC)
    assert (await CountRepository(database).counts(experiment.id)).arms == []


async def test_a_lock_on_the_table_is_waited_for_half_a_second_and_nothing_is_lost(
    url: str, database: Database
) -> None:
    key = await new_key(database)
    await store_prediction(database, key, LONG_AGO)
    before = await months(database)
    async with await psycopg.AsyncConnection.connect(url) as beside:
        await beside.execute("SELECT count(*) FROM predictions")
        with pytest.raises(Unavailable):
            await Partitions(database).drop_oldest(NOW, NOW)
        assert await months(database) == before
        assert await new_writer(database).commit([new_submission(key)]) == [Stored()]
    assert await Partitions(database).drop_oldest(NOW, NOW) is not None


async def test_texts_that_nothing_names_go_in_steps_and_all_others_stay(database: Database) -> None:
    key = await new_key(database)
    both = new_text()
    for _ in range(7):
        await store_prediction(database, key, LONG_AGO)
    await store_prediction(database, key, LONG_AGO, both)
    recent = new_text()
    await new_writer(database).commit([new_submission(key, [both, recent])])
    while await Partitions(database).drop_oldest(NOW - timedelta(days=90), NOW):
        pass
    assert await count_rows(database, "text_inputs") == 9
    retention = Retention(database)
    removed = [await retention.sweep_texts(NOW - timedelta(days=90), limit=3) for _ in range(8)]
    assert max(removed) <= 3
    assert sum(removed) == 7
    kept = {row[0] for row in await run_sql(database, "SELECT id FROM text_inputs")}
    assert kept == {both.id, recent.id}
    assert {row[0] for row in await run_sql(database, "SELECT text_id FROM embeddings")} == kept


async def test_a_text_that_is_sent_again_while_it_is_swept_keeps_its_vector(database: Database) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(5)]
    ended = asyncio.Event()
    retention = Retention(database)

    async def sweep() -> None:
        while not ended.is_set():
            await run_sql(database, "UPDATE text_inputs SET created_at = %s", LONG_AGO)
            await retention.sweep_texts(NOW)

    async def write() -> None:
        for number in range(40):
            sent = new_submission(key, [texts[number % 5]])
            assert await new_writer(database).commit([sent]) == [Stored()]
            if number % 3 == 0:
                await run_sql(database, "DELETE FROM predictions WHERE text_id = %s", texts[number % 5].id)

    sweeping = asyncio.create_task(sweep())
    await write()
    ended.set()
    await sweeping
    lost = "SELECT DISTINCT text_id FROM predictions WHERE text_id NOT IN (SELECT text_id FROM embeddings)"
    assert await run_sql(database, lost) == []


async def test_jobs_long_done_go_and_running_ones_stay(database: Database) -> None:
    key = await new_key(database)
    for state, ended in (("done", LONG_AGO), ("done", NOW), ("running", None)):
        await run_sql(
            database,
            "INSERT INTO jobs (id, holder_id, key_id, state, finished_at) "
            "VALUES (gen_random_uuid(), %s, %s, %s, %s)",
            key.id, key.id, state, ended,
        )  # fmt: skip
    assert await Retention(database).sweep_jobs(NOW - timedelta(days=1)) == 1
    assert await count_rows(database, "jobs") == 2


async def test_maintenance_drops_expired_months_only_if_retention_is_set(database: Database) -> None:
    key = await new_key(database)
    await store_prediction(database, key, LONG_AGO)
    await Maintenance(database, space=SPACE).tidy()
    assert await count_rows(database, "predictions") == 1
    keeping = Maintenance(database, space=SPACE, retention_days=90)
    for _ in range(4):
        await keeping.tidy()
    assert await count_rows(database, "predictions") == await count_rows(database, "text_inputs") == 0
