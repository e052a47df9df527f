"""Retention: whole months are dropped once all in them has expired, and texts that nothing names; nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from structlog.testing import capture_logs

from db.accounts.keys import Key
from db.connection.engine import Database
from db.core.ids import uuid7_floor
from db.errors import Unavailable
from db.experiments.counts import CountRepository
from db.experiments.experiments import ExperimentRepository, NewExperiment
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.predictions.partitions import NOTICE, ExpiredMonth, Partitions
from db.predictions.submissions import Stored
from db.privacy.retention import Retention
from serving.control.maintenance import Maintenance
from tests.support.postgres import SPACE
from tests.support.row_factories import count_rows, new_key, new_submission, new_text, new_writer, run_sql

pytestmark = pytest.mark.anyio

LONG_AGO = datetime(2025, 3, 10, tzinfo=UTC)
NOW = datetime.now(UTC)
YEAR = timedelta(days=365)


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


async def expire(database: Database, now: datetime, age: timedelta) -> datetime | None:
    """Have the oldest month noted, and dropped a day later; return its start."""
    partitions = Partitions(database)
    noted = await partitions.drop_oldest(now, age)
    if noted is None:
        return None
    assert noted == ExpiredMonth(start=noted.start, is_dropped=False)
    assert await partitions.drop_oldest(now + NOTICE - timedelta(seconds=1), age) is None
    assert await partitions.drop_oldest(now + NOTICE, age) == ExpiredMonth(start=noted.start, is_dropped=True)
    return noted.start


def since(moment: datetime) -> timedelta:
    return NOW - moment


async def test_the_oldest_month_goes_with_its_feedback_once_all_in_it_is_over(database: Database) -> None:
    key = await new_key(database)
    old, recent = await store_prediction(database, key, LONG_AGO), await store_prediction(database, key, NOW)
    # The 31st hasn't expired.
    last_day = since(datetime(2025, 3, 31, tzinfo=UTC))
    assert await expire(database, NOW, last_day) == datetime(2025, 2, 1, tzinfo=UTC)
    assert await expire(database, NOW, last_day) is None
    over = since(datetime(2025, 4, 1, 0, 0, 1, tzinfo=UTC))
    assert await expire(database, NOW, over) == datetime(2025, 3, 1, tzinfo=UTC)
    assert await expire(database, NOW, over) is None
    assert {name[-7:] for name in await months(database)}.isdisjoint({"2025_02", "2025_03"})
    assert await run_sql(database, "SELECT id FROM predictions") == [(recent,)]
    assert await run_sql(database, "SELECT prediction_id FROM feedback") == [(recent,)]
    assert old != recent
    audit = "SELECT subject FROM audit_log WHERE action = 'month.drop' ORDER BY id"
    assert await run_sql(database, audit) == [("2025-02",), ("2025-03",)]


async def test_months_that_are_made_ahead_stay_however_short_the_retention(database: Database) -> None:
    await Partitions(database).ensure(NOW)
    before = await months(database)
    assert await expire(database, NOW, timedelta(days=-300)) is None
    assert await months(database) == before


async def test_one_month_goes_in_a_day_however_many_have_expired(database: Database) -> None:
    key = await new_key(database)
    for at in (LONG_AGO, NOW):
        await store_prediction(database, key, at)
    before = await months(database)
    # Every 15 seconds, as maintenance does, and by another process in between.
    for second in range(0, 300, 15):
        await Partitions(database).drop_oldest(NOW + NOTICE + timedelta(seconds=second), YEAR)
    assert await months(database) == before
    for second in range(0, 300, 15):
        await Partitions(database).drop_oldest(NOW + 2 * NOTICE + timedelta(seconds=300 + second), YEAR)
    assert len(await months(database)) == len(before) - 2


async def test_no_month_goes_that_the_newest_prediction_is_not_older_than(database: Database) -> None:
    key = await new_key(database)
    await store_prediction(database, key, LONG_AGO)
    # Both clocks of the platform could be wrong; nothing was predicted since.
    ahead = LONG_AGO + timedelta(days=3000)
    assert await expire(database, ahead, timedelta(days=90)) is None
    await store_prediction(database, key, LONG_AGO + timedelta(days=60))
    assert await expire(database, ahead, timedelta(days=30)) == datetime(2025, 2, 1, tzinfo=UTC)
    assert await expire(database, ahead, timedelta(days=30)) == datetime(2025, 3, 1, tzinfo=UTC)
    assert await expire(database, ahead, timedelta(days=30)) is None


async def test_a_clock_that_was_wrong_for_less_than_a_day_costs_nothing(database: Database) -> None:
    key = await new_key(database)
    for at in (LONG_AGO, NOW):
        await store_prediction(database, key, at)
    partitions, ahead, age = Partitions(database), NOW + timedelta(days=4000), timedelta(days=2000)
    await store_prediction(database, key, ahead)
    before = await months(database)
    # Once ahead, right again, and ahead again: what was noted under the wrong clock doesn't count.
    for now in (ahead, NOW, ahead + NOTICE):
        await partitions.drop_oldest(now, age)
    assert await months(database) == before
    assert await partitions.drop_oldest(NOW, age) is None
    # Noted at a time that lies ahead now: the day begins anew instead of never ending.
    assert await partitions.drop_oldest(ahead, YEAR) == ExpiredMonth(
        start=datetime(2025, 2, 1, tzinfo=UTC), is_dropped=False
    )
    assert await expire(database, NOW, YEAR) == datetime(2025, 2, 1, tzinfo=UTC)


async def test_a_month_stays_while_an_experiment_that_began_in_it_runs(database: Database) -> None:
    key = await new_key(database)
    for at in (LONG_AGO, NOW):
        await store_prediction(database, key, at)
    experiments = ExperimentRepository(database)
    experiment = await experiments.create(
        NewExperiment(model="sentiment", champion="2", challenger="3", share=0.5, shadow=False, salt="s"),
        actor=key.id,
    )
    await run_sql(database, "UPDATE experiments SET created_at = %s", LONG_AGO - timedelta(days=1))
    assert await expire(database, NOW, YEAR) == datetime(2025, 2, 1, tzinfo=UTC)
    assert await expire(database, NOW, YEAR) is None
    await experiments.stop(experiment.id, actor=key.id, reason="over")
    assert await expire(database, NOW, YEAR) == datetime(2025, 3, 1, tzinfo=UTC)
    assert (await CountRepository(database).counts(experiment.id)).arms == []


async def test_a_lock_on_the_table_is_waited_for_half_a_second_and_nothing_is_lost(
    url: str, database: Database
) -> None:
    key = await new_key(database)
    for at in (LONG_AGO, NOW):
        await store_prediction(database, key, at)
    before = await months(database)
    partitions = Partitions(database)
    await partitions.drop_oldest(NOW, YEAR)
    async with await psycopg.AsyncConnection.connect(url) as beside:
        await beside.execute("SELECT count(*) FROM predictions")
        with pytest.raises(Unavailable):
            await partitions.drop_oldest(NOW + NOTICE, YEAR)
        assert await months(database) == before
        assert await new_writer(database).commit([new_submission(key)]) == [Stored()]
    dropped = await partitions.drop_oldest(NOW + NOTICE, YEAR)
    assert dropped is not None
    assert dropped.is_dropped


async def test_texts_that_nothing_names_go_in_steps_and_all_others_stay(database: Database) -> None:
    key = await new_key(database)
    both = new_text()
    for _ in range(7):
        await store_prediction(database, key, LONG_AGO)
    await store_prediction(database, key, LONG_AGO, both)
    recent = new_text()
    await new_writer(database).commit([new_submission(key, [both, recent])])
    while await expire(database, NOW, timedelta(days=90)):
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


async def fill(database: Database) -> UUID:
    """Store an old prediction, a recent one and an old job; return the id of the recent one."""
    key = await new_key(database)
    await store_prediction(database, key, LONG_AGO)
    await run_sql(
        database,
        "INSERT INTO jobs (id, holder_id, key_id, state, finished_at) "
        "VALUES (gen_random_uuid(), %s, %s, 'done', %s)",
        key.id, key.id, LONG_AGO,
    )  # fmt: skip
    return await store_prediction(database, key, NOW)


async def a_day_later(database: Database) -> None:
    await run_sql(database, "UPDATE expired_month SET noted_at = noted_at - interval '1 day'")


async def test_maintenance_drops_expired_months_only_if_retention_is_set(database: Database) -> None:
    recent = await fill(database)
    for _ in range(3):
        await Maintenance(database, space=SPACE).tidy()
        await a_day_later(database)
    assert await count_rows(database, "predictions") == 2
    keeping = Maintenance(database, space=SPACE, retention_days=90)
    await keeping.tidy()
    await keeping.tidy()
    assert await count_rows(database, "predictions") == await count_rows(database, "text_inputs") == 2
    assert await count_rows(database, "jobs") == 1
    for _ in range(2):
        await a_day_later(database)
        await keeping.tidy()
        await keeping.tidy()
    assert await run_sql(database, "SELECT id FROM predictions") == [(recent,)]
    assert await count_rows(database, "text_inputs") == 1
    assert await count_rows(database, "jobs") == 0


@pytest.mark.parametrize("days", [120, -120])
async def test_maintenance_removes_nothing_while_its_clock_differs_from_the_databases(
    database: Database, days: int
) -> None:
    await fill(database)
    wrong = Maintenance(
        database,
        space=SPACE,
        retention_days=30,
        read_clock=lambda: datetime.now(UTC) + timedelta(days=days),
    )
    with capture_logs() as logs:
        for _ in range(4):
            await wrong.tidy()
            await a_day_later(database)
    assert [entry["log_level"] for entry in logs if entry["event"] == "retention.refused"] == ["error"] * 4
    assert await count_rows(database, "predictions") == await count_rows(database, "text_inputs") == 2
    assert await count_rows(database, "jobs") == 1


async def test_a_machine_whose_clocks_are_all_wrong_drops_nothing_at_once(database: Database) -> None:
    """The control and PostgreSQL agree on a time 120 days ahead, and new predictions have it."""
    recent = await fill(database)
    ahead = NOW + timedelta(days=120)
    await store_prediction(database, await new_key(database), ahead)
    partitions = Partitions(database)
    for second in range(0, 3600, 60):
        await partitions.drop_oldest(ahead + timedelta(seconds=second), timedelta(days=30))
    assert await run_sql(database, "SELECT count(*) FROM predictions WHERE id = %s", recent) == [(1,)]
    assert await count_rows(database, "predictions") == 3
