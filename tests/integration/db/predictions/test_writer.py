"""The writer: all or nothing, exactly once, in spite of kills, locks and repetitions."""

import asyncio
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest

from db.connection.engine import Database
from db.core.ids import uuid7_time
from db.embeddings.segments import Segments
from db.errors import Rejected, Unavailable
from db.predictions.partitions import Partitions
from db.predictions.predictions import PredictionRepository
from db.predictions.submissions import Failed, Mismatch, Replayed, Stored
from db.predictions.writer import PredictionWriter
from tests.support.postgres import SPACE, open_database
from tests.support.row_factories import (
    count_rows,
    new_idempotency,
    new_key,
    new_prediction,
    new_submission,
    new_text,
    new_writer,
    now,
    run_sql,
    unit_vectors,
)

pytestmark = pytest.mark.anyio


async def test_a_batch_is_stored_with_texts_vectors_and_every_column(database: Database) -> None:
    key = await new_key(database)
    vectors = unit_vectors(2)
    texts = [new_text('Grüße 👋, \\N {"a"}', vectors[0]), new_text("second", vectors[1])]
    batch = [new_submission(key, texts, unit="u", truncated=True), new_submission(key, label="negative")]
    assert await new_writer(database).commit(batch) == [Stored(), Stored()]
    stored = await PredictionRepository(database).get(batch[0].predictions[0].id)
    given = batch[0].predictions[0]
    assert stored.text == texts[0].content
    assert dict(stored.scores) == {"negative": 0.125, "neutral": 0.125, "positive": 0.75}
    assert stored.predicted_at == uuid7_time(given.id)
    for name in (
        "id",
        "text_id",
        "user_id",
        "key_id",
        "holder_id",
        "model",
        "version",
        "arm",
        "experiment_id",
    ):
        assert getattr(stored, name) == getattr(given, name)
    for name in ("unit", "label", "confidence", "request_id", "truncated", "queue_ms", "infer_ms"):
        assert getattr(stored, name) == getattr(given, name)
    [(vector,)] = await run_sql(
        database, "SELECT embedding::real[] FROM embeddings WHERE text_id = %s", texts[0].id
    )
    assert np.array_equal(np.array(vector, np.float16), vectors[0].astype(np.float16))
    assert await count_rows(database, "embeddings") == 3


async def test_a_segment_whose_table_isnt_known_yet_is_tried_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await new_key(database)
    await run_sql(database, "UPDATE segments SET state = 'closed', rows = 0")
    await run_sql(database, "INSERT INTO segments (id, space, state) VALUES (2, %s, 'open')", SPACE)
    execute, refused = PredictionWriter._execute, []

    async def heard_of_late(*arguments: Any) -> Any:
        try:
            return await execute(*arguments)
        except psycopg.errors.CheckViolation as error:
            refused.append(error)
            await run_sql(database, "SELECT make_segment(2), attach_segment(2)")
            raise

    monkeypatch.setattr(PredictionWriter, "_execute", heard_of_late)
    assert await new_writer(database).commit([new_submission(key)]) == [Stored()]
    assert len(refused) == 1
    assert await run_sql(database, "SELECT segment FROM embeddings") == [(2,)]


async def test_a_text_sent_again_is_stored_and_embedded_once(database: Database) -> None:
    key = await new_key(database)
    text = new_text("the same")
    for _ in range(2):
        await new_writer(database).commit([new_submission(key, [text]), new_submission(key, [text])])
    assert await count_rows(database, "predictions") == 4
    assert await count_rows(database, "text_inputs") == 1
    assert await count_rows(database, "embeddings") == 1


async def test_many_writers_of_the_same_texts_in_any_order_store_each_once(
    url: str, database: Database
) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(40)]
    random = np.random.default_rng(1)
    async with open_database(url) as second:
        writers = [new_writer(database), new_writer(second)]

        async def work(turn: int) -> None:
            order = random.permutation(len(texts))[:25]
            outcomes = await writers[turn % 2].commit([new_submission(key, [texts[i]]) for i in order])
            assert outcomes == [Stored()] * len(order)

        await asyncio.gather(*(work(turn) for turn in range(40)))
    assert await count_rows(database, "predictions") == 40 * 25
    assert await count_rows(database, "text_inputs") == await count_rows(database, "embeddings") == 40


async def test_a_text_known_in_one_space_is_embedded_once_in_another(database: Database) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(20)]
    await new_writer(database).commit([new_submission(key, texts)])
    await Segments(database, "other").ensure()
    other = new_writer(database, "other")
    await asyncio.gather(*(other.commit([new_submission(key, texts)]) for _ in range(8)))
    rows = await run_sql(
        database,
        "SELECT space, count(*) FROM embeddings e JOIN segments s ON s.id = segment GROUP BY 1 ORDER BY 1",
    )
    assert rows == [("other", 20), ("test-space", 20)]
    assert await run_sql(database, "SELECT DISTINCT spaces FROM text_inputs") == [(["test-space", "other"],)]


async def test_an_idempotency_key_replays_the_first_answer_and_refuses_another_body(
    database: Database,
) -> None:
    key = await new_key(database)
    text = new_text()
    assert await new_writer(database).commit(
        [new_submission(key, idempotency=new_idempotency(key, "k", answer=b"first"))]
    ) == [Stored()]
    outcomes = await new_writer(database).commit(
        [
            new_submission(key, [text], idempotency=new_idempotency(key, "k", answer=b"second")),
            new_submission(key, [text], idempotency=new_idempotency(key, "k", body=b"another")),
            new_submission(key, idempotency=new_idempotency(key, "other")),
        ]
    )
    assert outcomes == [Replayed(status=201, answer=b"first"), Mismatch(), Stored()]
    assert await count_rows(database, "predictions") == 2
    assert await run_sql(database, "SELECT 1 FROM text_inputs WHERE id = %s", text.id) == []


async def test_duplicates_within_one_batch_store_once(database: Database) -> None:
    key = await new_key(database)
    batch = [
        new_submission(key, idempotency=new_idempotency(key, "k", answer=b"%d" % number))
        for number in range(3)
    ]
    batch.append(new_submission(key, idempotency=new_idempotency(key, "k", body=b"another")))
    outcomes = await new_writer(database).commit(batch)
    replayed = Replayed(status=201, answer=b"0")
    assert outcomes == [Stored(), replayed, replayed, Mismatch()]
    assert await count_rows(database, "predictions") == 1


async def test_concurrent_duplicates_store_once_and_all_get_the_same_answer(
    url: str, database: Database
) -> None:
    key = await new_key(database)
    async with open_database(url) as second:
        writers = [new_writer(database), new_writer(second)]
        outcomes = await asyncio.gather(
            *(
                writers[turn % 2].commit(
                    [
                        new_submission(key),
                        new_submission(
                            key, idempotency=new_idempotency(key, f"k{turn // 8}", answer=b"%d" % turn)
                        ),
                    ]
                )
                for turn in range(80)
            )
        )
    for group in range(10):
        mine = [outcome[1] for outcome in outcomes[group * 8 : group * 8 + 8]]
        stored = [turn for turn, outcome in enumerate(mine) if outcome == Stored()]
        assert len(stored) == 1
        answer = b"%d" % (group * 8 + stored[0])
        assert all(outcome in (Stored(), Replayed(status=201, answer=answer)) for outcome in mine)
    assert await count_rows(database, "predictions") == 80 + 10


async def test_an_idempotency_row_older_than_a_day_is_replaced(database: Database) -> None:
    key = await new_key(database)
    await new_writer(database).commit(
        [new_submission(key, idempotency=new_idempotency(key, "k", answer=b"old"))]
    )
    await run_sql(database, "UPDATE idempotency SET created_at = now() - interval '24 hours 1 second'")
    again = [new_submission(key, idempotency=new_idempotency(key, "k", body=b"another", answer=b"new"))]
    assert await new_writer(database).commit(again) == [Stored()]
    assert await run_sql(
        database, "SELECT answer, created_at > now() - interval '1 minute' FROM idempotency"
    ) == [(b"new", True)]


@pytest.mark.parametrize("fault", ["confidence", "user", "nul", "surrogate", "vector", "status", "twice"])
async def test_what_the_database_refuses_fails_alone(database: Database, fault: str) -> None:
    key = await new_key(database)
    bad = {
        "confidence": lambda: new_submission(key, confidence=1.5),
        "user": lambda: new_submission(key, user_id=uuid4()),
        "nul": lambda: new_submission(key, [new_text("a\x00b")]),
        "surrogate": lambda: new_submission(key, request_id="\ud800"),
        "vector": lambda: new_submission(key, [new_text(vector=np.ones(383, np.float32))]),
        "status": lambda: new_submission(key, unit="a\x00b"),
        "twice": lambda: new_submission(key, id=batch[0].predictions[0].id),
    }
    batch = [new_submission(key) for _ in range(9)]
    batch.insert(5, bad[fault]())
    batch.append(new_submission(key, idempotency=new_idempotency(key, "k")))
    outcomes = await new_writer(database).commit(batch)
    assert [isinstance(outcome, Stored) for outcome in outcomes] == [True] * 5 + [False] + [True] * 5
    failed = outcomes[5]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Rejected)
    assert await count_rows(database, "predictions") == await count_rows(database, "text_inputs") == 10


async def test_a_killed_connection_is_unavailable_then_works_again(url: str, database: Database) -> None:
    key = await new_key(database)
    await new_writer(database).commit([new_submission(key)])
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with pytest.raises(Unavailable):
        await new_writer(database).commit([new_submission(key)])
    outcomes = []
    for _ in range(20):
        try:
            outcomes += await new_writer(database).commit([new_submission(key)])
        except Unavailable:
            await asyncio.sleep(0.1)
    assert outcomes
    assert await count_rows(database, "predictions") == 1 + len(outcomes)


async def test_commits_cut_off_by_kills_are_stored_whole_or_not_at_all(url: str, database: Database) -> None:
    key = await new_key(database)
    acknowledged: list[set[object]] = []
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            request = new_submission(
                key, [new_text() for _ in range(5)], idempotency=new_idempotency(key, str(uuid4()))
            )
            try:
                [outcome] = await new_writer(database).commit([request])
            except Unavailable:
                continue
            assert outcome == Stored()
            acknowledged.append({prediction.id for prediction in request.predictions})

    tasks = [asyncio.create_task(write()) for _ in range(4)]
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as killer:
        for _ in range(15):
            await asyncio.sleep(0.03)
            await killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
    await asyncio.sleep(0.5)
    stop.set()
    await asyncio.gather(*tasks)
    assert acknowledged
    stored = {row[0] for row in await run_sql(database, "SELECT id FROM predictions")}
    assert set().union(*acknowledged) <= stored
    assert len(stored) == 5 * await count_rows(database, "idempotency")
    assert (
        await count_rows(database, "text_inputs") == await count_rows(database, "embeddings") == len(stored)
    )


async def test_a_text_erased_in_between_is_stored_anew(url: str, database: Database) -> None:
    key = await new_key(database)
    text = new_text()
    await new_writer(database).commit([new_submission(key, [text])])
    async with await psycopg.AsyncConnection.connect(url) as eraser:
        await eraser.execute("DELETE FROM predictions")
        await eraser.execute("DELETE FROM embeddings")
        await eraser.execute("DELETE FROM text_inputs")
        waiting = asyncio.create_task(new_writer(database).commit([new_submission(key, [text])]))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await eraser.commit()
    assert await waiting == [Stored()]
    assert await count_rows(database, "text_inputs") == await count_rows(database, "embeddings") == 1


async def test_a_time_without_a_partition_is_unavailable_and_stores_nothing(database: Database) -> None:
    key = await new_key(database)
    await run_sql(database, "DROP TABLE " + f"feedback_{now():%Y_%m}, predictions_{now():%Y_%m} CASCADE")
    with pytest.raises(Unavailable):
        await new_writer(database).commit([new_submission(key)])
    assert await count_rows(database, "text_inputs") == 0
    await Partitions(database).ensure(now())
    assert await new_writer(database).commit([new_submission(key)]) == [Stored()]


async def test_a_thousand_texts_are_one_transaction(database: Database) -> None:
    key = await new_key(database)
    vectors = unit_vectors(1000)
    request = new_submission(key, [new_text(vector=vector) for vector in vectors])
    assert await new_writer(database).commit([request]) == [Stored()]
    assert await run_sql(database, "SELECT count(DISTINCT xmin::text), count(*) FROM predictions") == [
        (1, 1000)
    ]
    assert await PredictionWriter(database, space="test-space").commit([]) == []


async def test_predictions_of_one_text_by_several_versions_share_it(database: Database) -> None:
    key = await new_key(database)
    text = new_text()
    request = new_submission(key, [text])
    shadow = new_prediction(key, text, arm="shadow", version="3")
    both = type(request)(texts=[text], predictions=[*request.predictions, shadow])
    assert await new_writer(database).commit([both]) == [Stored()]
    assert await count_rows(database, "text_inputs") == 1
