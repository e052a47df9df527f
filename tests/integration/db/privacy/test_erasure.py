"""Erasure: the content is nowhere any more, the counts stay, and nobody else loses anything."""

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest

from db.accounts.audit import AuditFilters, AuditRepository
from db.accounts.keys import Key, KeyRepository
from db.accounts.users import UserRepository
from db.backup.scrub import scrub
from db.connection import retries
from db.connection.engine import Database
from db.errors import NotFound
from db.experiments.counts import CountRepository
from db.experiments.experiments import ExperimentRepository, NewExperiment
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.predictions.predictions import PredictionRepository
from db.predictions.submissions import Dropped, NewText, Stored, Submission
from db.privacy.erasure import ErasureRepository
from db.schema import revisions
from db.schema.tables import NIL_ID
from db.search.similarity import SimilarityRepository
from tests.support.postgres import SPACE, TestServer, open_database
from tests.support.row_factories import (
    count_rows,
    new_idempotency,
    new_key,
    new_prediction,
    new_submission,
    new_text,
    new_writer,
    run_sql,
    unit_vectors,
    wait_for_lock,
)
from tests.support.stored_content import dump_database, find_in_files

pytestmark = pytest.mark.anyio


def erasures(database: Database) -> ErasureRepository:
    return ErasureRepository(database, SimilarityRepository(database, space=SPACE), space=SPACE)


async def new_user(database: Database, name: str = "ada") -> UUID:
    user = await UserRepository(database).create(username=name, email=f"{name}@example.org", actor=None)
    return user.id


async def judge(database: Database, key: Key, prediction_id: UUID, comment: str | None = None) -> None:
    await FeedbackRepository(database).put(
        NewFeedback(
            prediction_id=prediction_id,
            holder_id=key.holder_id,
            key_id=key.id,
            is_correct=False,
            label="negative",
            comment=comment,
        )
    )


def with_stored_answer(sent: Submission, key: Key) -> Submission:
    """Return the submission with an idempotent answer, as the API renders it."""
    rendered = [
        {"id": str(row.id), "text_id": str(row.text_id), "unit": row.unit} for row in sent.predictions
    ]
    return replace(sent, idempotency=new_idempotency(key, "again", answer=json.dumps(rendered).encode()))


def vector_near(vector: "np.ndarray", cosine: float) -> "np.ndarray":
    """Return a unit vector at this cosine to another one."""
    orthogonal = unit_vectors(1, seed=99)[0]
    orthogonal -= (orthogonal @ vector) * vector
    orthogonal /= np.linalg.norm(orthogonal)
    return (cosine * vector + np.sqrt(1 - cosine**2) * orthogonal).astype(np.float32)


async def test_a_user_is_erased_and_what_others_sent_too_stays(database: Database) -> None:
    key, other = await new_key(database), await new_key(database)
    ada = await new_user(database)
    alone, both, theirs = new_text("ada's alone"), new_text("sent by both"), new_text("theirs")
    mine = with_stored_answer(new_submission(key, [alone, both], user_id=ada, unit="ada"), key)
    bystander = with_stored_answer(new_submission(other, [both, theirs]), other)
    assert await new_writer(database).commit([mine, bystander]) == [Stored(), Stored()]
    await judge(database, other, mine.predictions[0].id, "ada lives in Lima")
    await judge(database, other, bystander.predictions[0].id, "fine")

    receipt = await erasures(database).erase_user(ada, actor=key.id)
    assert receipt.erased.as_dict() == {
        "predictions": 2, "texts": 1, "embeddings": 1, "feedback": 1, "comments": 1, "idempotency": 1, "jobs": 0,
    }  # fmt: skip
    assert (receipt.shared, receipt.shared_text_ids) == (1, (both.id,))
    assert await run_sql(database, "SELECT id FROM text_inputs WHERE id <> %s ORDER BY content", NIL_ID) == [
        (both.id,),
        (theirs.id,),
    ]
    with pytest.raises(NotFound):
        await PredictionRepository(database).get(mine.predictions[0].id)
    assert {result.id for result in (await PredictionRepository(database).list()).items} == {
        each.id for each in bystander.predictions
    }
    assert await run_sql(database, "SELECT count(*) FROM predictions WHERE user_id IS NOT NULL") == [(0,)]
    assert await count_rows(database, "predictions") == 4
    assert await run_sql(database, "SELECT comment FROM feedback ORDER BY comment") == [("fine",), (None,)]
    assert await count_rows(database, "idempotency") == 1

    again = await erasures(database).erase_user(ada, actor=key.id)
    assert set(again.erased.as_dict().values()) == {0}
    assert again.shared == 0
    entries = (await AuditRepository(database).list(AuditFilters(subject=str(ada)))).items
    assert [(entry.action, entry.actor) for entry in entries[:2]] == [("user.erase", key.id)] * 2
    assert entries[1].detail == receipt.erased.as_dict()


async def test_a_users_key_owns_predictions_about_no_user_but_not_those_about_others(
    database: Database,
) -> None:
    ada, bob = await new_user(database), await new_user(database, "bob")
    key = await new_key(database, owner_id=ada)
    about_bob = new_submission(key, user_id=bob)
    await new_writer(database).commit([new_submission(key), about_bob])
    receipt = await erasures(database).erase_user(ada, actor=None)
    assert receipt.erased.predictions == 1
    [(holder, key_id)] = await run_sql(
        database, "SELECT holder_id, key_id FROM predictions WHERE user_id IS NULL"
    )
    assert holder == key_id == NIL_ID
    assert (await PredictionRepository(database).get(about_bob.predictions[0].id)).user_id == bob
    assert NIL_ID not in {each.id for each in await KeyRepository(database).list()}


async def test_feedback_on_others_predictions_loses_its_user_and_comment(
    database: Database,
) -> None:
    ada = await new_user(database)
    key, hers = await new_key(database), await new_key(database, owner_id=ada)
    sent = new_submission(key)
    await new_writer(database).commit([sent])
    await judge(database, hers, sent.predictions[0].id, "I, Ada, disagree")
    await judge(database, key, sent.predictions[0].id, "my own")
    receipt = await erasures(database).erase_user(ada, actor=None)
    assert (receipt.erased.feedback, receipt.erased.comments, receipt.erased.predictions) == (1, 1, 0)
    prediction = await PredictionRepository(database).get(sent.predictions[0].id)
    assert {(each.comment, each.is_correct) for each in prediction.feedback} == {
        (None, False),
        ("my own", False),
    }
    assert ada not in {each.holder_id for each in prediction.feedback}


async def test_a_text_is_erased_for_every_sender_and_near_copies_are_named(database: Database) -> None:
    vector = unit_vectors(1, seed=5)[0]
    text, copy = new_text("my number is 555", vector), new_text("my number is 556", vector_near(vector, 0.97))
    far = new_text("something else", vector_near(vector, 0.9))
    keys = [await new_key(database) for _ in range(3)]
    await new_writer(database).commit([new_submission(key, [text, copy, far]) for key in keys])
    receipt = await erasures(database).erase_text(text.id, actor=None)
    assert (receipt.erased.predictions, receipt.erased.texts, receipt.erased.embeddings) == (3, 1, 1)
    assert receipt.near_copies.text_ids == (copy.id,)
    assert receipt.near_copies.complete
    assert receipt.shared == 0
    again = await erasures(database).erase_text(text.id, actor=None)
    assert set(again.erased.as_dict().values()) == {0}
    # A text that is sent again is stored again.
    await new_writer(database).commit([new_submission(keys[0], [text])])
    assert (await erasures(database).erase_text(text.id, actor=None)).erased.texts == 1


async def test_only_the_unknown_is_not_found(database: Database) -> None:
    for unknown in (uuid4(), NIL_ID):
        with pytest.raises(NotFound):
            await erasures(database).erase_text(unknown, actor=None)
        with pytest.raises(NotFound):
            await erasures(database).erase_user(unknown, actor=None)
    assert await count_rows(database, "audit_log") == 0


async def test_more_than_a_step_holds_is_erased_by_one_call(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.privacy.erasure._STEP_ROWS", 3)
    key, ada = await new_key(database), await new_user(database)
    text = new_text()
    for _ in range(8):
        await new_writer(database).commit([new_submission(key, [text], user_id=ada)])
    receipt = await erasures(database).erase_user(ada, actor=None)
    assert (receipt.erased.predictions, receipt.erased.texts, receipt.shared) == (8, 1, 0)


async def test_two_calls_at_once_erase_everything_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.privacy.erasure._STEP_ROWS", 4)
    key, ada, bob = await new_key(database), await new_user(database), await new_user(database, "bob")
    texts = [new_text() for _ in range(5)]
    for number in range(20):
        chosen = [texts[number % 5], texts[(number + 2) % 5]]
        await new_writer(database).commit([new_submission(key, chosen, user_id=(ada, bob)[number % 2])])
    calls = [erasures(database).erase_user(user, actor=None) for user in (ada, bob, ada, bob)]
    receipts = await asyncio.gather(*calls)
    assert sum(receipt.erased.predictions for receipt in receipts) == 40
    assert sum(receipt.erased.texts for receipt in receipts) == 5
    assert await run_sql(database, "SELECT id FROM text_inputs") == [(NIL_ID,)]
    assert await count_rows(database, "embeddings") == 0


async def test_an_experiment_counts_as_before(database: Database) -> None:
    key = await new_key(database)
    users = [await new_user(database, f"user{number}") for number in range(3)]
    started = await ExperimentRepository(database).create(
        NewExperiment(model="sentiment", champion="2", challenger="3", share=0.5, shadow=True, salt="s"),
        actor=key.id,
    )
    await run_sql(database, "UPDATE experiment_stages SET started_at = started_at - interval '10 s'")
    for user in users:
        for number in range(4):
            text = new_text()
            unit = None if number % 2 else str(user)
            shared = {
                "user_id": user,
                "experiment_id": started.id,
                "request_id": f"{user}-{number}",
                "unit": unit,
            }
            champion = new_prediction(key, text, **shared)
            shadow = new_prediction(key, text, arm="shadow", version="3", label="negative", **shared)
            sent = Submission(texts=[text], predictions=[champion, shadow])
            assert await new_writer(database).commit([sent]) == [Stored()]
            if number < 3:
                await judge(database, key, champion.id, "a comment")
    before = await CountRepository(database).counts(started.id)
    assert {arm.judged for arm in before.arms} == {3}
    for user in users[:2]:
        await erasures(database).erase_user(user, actor=None)
    after = await CountRepository(database).counts(started.id)
    assert after == before
    units = await run_sql(database, "SELECT count(DISTINCT unit) FROM predictions WHERE text_id = %s", NIL_ID)
    assert units == [(2,)]


async def test_a_shadow_that_meets_an_erasure_waits_for_it_and_brings_nothing_back(
    url: str, database: Database
) -> None:
    key, user = await new_key(database), await new_user(database)
    text = new_text("to be forgotten")
    answer = new_submission(key, [text], user_id=user)
    # Others sent it, too, so that the text itself stays.
    others = new_submission(key, [text])
    await new_writer(database).commit([answer, others])
    shadow = replace(
        new_submission(key, [text], user_id=user, arm="shadow"), beside=[answer.predictions[0].id]
    )
    async with await psycopg.AsyncConnection.connect(url) as erasing:
        await erasing.execute("SELECT FROM text_inputs WHERE id = %s FOR UPDATE", (text.id,))
        late = asyncio.create_task(new_writer(database).commit([shadow]))
        await wait_for_lock(database)
        await erasing.execute("SELECT FROM predictions WHERE user_id = %s FOR UPDATE", (user,))
        await erasing.execute(
            "INSERT INTO text_inputs (id, content, spaces) VALUES (%s, '', '{}')", (NIL_ID,)
        )
        await erasing.execute(
            "UPDATE predictions SET text_id = %s, user_id = NULL WHERE user_id = %s", (NIL_ID, user)
        )
    assert await late == [Dropped()]
    assert await run_sql(database, "SELECT count(*) FROM predictions WHERE arm = 'shadow'") == [(0,)]


async def test_feedback_on_what_was_erased_is_on_nothing(database: Database) -> None:
    key = await new_key(database)
    sent = new_submission(key)
    await new_writer(database).commit([sent])
    await erasures(database).erase_text(sent.texts[0].id, actor=None)
    with pytest.raises(NotFound):
        await judge(database, key, sent.predictions[0].id, "late")
    assert await count_rows(database, "feedback") == 0


async def test_feedback_that_comes_during_an_erasure_is_erased_or_refused(
    url: str, database: Database
) -> None:
    key = await new_key(database)
    sent = new_submission(key)
    await new_writer(database).commit([sent])
    identity = sent.predictions[0].id
    async with await psycopg.AsyncConnection.connect(url) as beside:
        # Feedback in progress locks its prediction; the erasure waits for it and erases it, too.
        await beside.execute("SELECT id FROM predictions WHERE id = %s FOR KEY SHARE", (identity,))
        erasing = asyncio.create_task(erasures(database).erase_text(sent.texts[0].id, actor=None))
        await wait_for_lock(database)
        await beside.execute(
            "INSERT INTO feedback (prediction_id, holder_id, key_id, is_correct, comment) "
            "VALUES (%s, %s, %s, true, 'in between')",
            (identity, key.holder_id, key.id),
        )
        await beside.commit()
        receipt = await erasing
    assert receipt.erased.comments == 1
    assert await run_sql(database, "SELECT comment FROM feedback") == [(None,)]


async def test_an_erasure_outlasts_an_index_that_is_being_built(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_LOCK_LIMIT", "SET LOCAL lock_timeout = '20ms'")
    key = await new_key(database)
    sent = new_submission(key)
    await new_writer(database).commit([sent])
    waits = 0

    async def count_waits(_seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 6:
            await build.commit()

    monkeypatch.setattr(retries, "_pause", count_waits)
    async with await psycopg.AsyncConnection.connect(url) as build:
        await build.execute("LOCK TABLE embeddings IN SHARE MODE")
        receipt = await erasures(database).erase_text(sent.texts[0].id, actor=None)
    assert waits == 6
    assert receipt.erased.embeddings == 1


async def test_writers_and_searches_during_erasures_lose_nothing_and_see_each_text_once(
    database: Database,
) -> None:
    key = await new_key(database)
    texts = [new_text() for _ in range(6)]
    similarity = SimilarityRepository(database, space=SPACE)
    ended = asyncio.Event()
    stored: list[UUID] = []

    async def write(shift: int) -> None:
        for number in range(25):
            chosen = [texts[(number * 5 + shift) % 6], texts[(number + shift) % 6]]
            sent = new_submission(key, list({text.id: text for text in chosen}.values()))
            assert await new_writer(database).commit([sent]) == [Stored()]
            stored.extend(each.id for each in sent.predictions)

    async def erase(text: NewText) -> int:
        erased = 0
        while not ended.is_set():
            with suppress(NotFound):
                erased += (await erasures(database).erase_text(text.id, actor=None)).erased.predictions
        return erased

    async def search() -> None:
        while not ended.is_set():
            for text in texts:
                vector = np.frombuffer(text.embedding, "<f2").astype(np.float32)
                neighbours = await similarity.search(vector, k=10)
                named = [each.text_id for each in neighbours.results]
                assert len(named) == len(set(named))
                assert all(each.text for each in neighbours.results)

    beside = [asyncio.create_task(each) for each in (erase(texts[0]), erase(texts[1]), search())]
    await asyncio.gather(*(write(shift) for shift in range(3)))
    ended.set()
    erased = sum((await asyncio.gather(*beside))[:2])
    assert await count_rows(database, "predictions") == len(stored)
    assert (
        erased
        == (await run_sql(database, "SELECT count(*) FROM predictions WHERE text_id = %s", NIL_ID))[0][0]
    )
    # Complete or gone: every text has its vector, and a prediction that names it.
    assert (
        await run_sql(
            database,
            "SELECT t.id FROM text_inputs t WHERE id <> %s AND (NOT EXISTS ("
            "SELECT FROM embeddings e WHERE e.text_id = t.id) OR NOT EXISTS ("
            "SELECT FROM predictions p WHERE p.text_id = t.id))",
            NIL_ID,
        )
        == []
    )


async def test_neither_sql_nor_a_dump_nor_the_data_files_hold_what_was_erased(
    server: TestServer, url: str
) -> None:
    secrets = ["Zanzibar-4711 is my password", "the comment names Quetzalcoatl-99", "unit-of-Xanthippe-3"]
    async with open_database(url) as database:
        key, ada = await new_key(database), await new_user(database)
        vectors = unit_vectors(300, seed=11)
        text = new_text(secrets[0], vectors[0])
        mine = with_stored_answer(new_submission(key, [text], user_id=ada, unit=secrets[2]), key)
        others = new_submission(key, [new_text(vector=vector) for vector in vectors[1:]])
        await new_writer(database).commit([mine, others])
        await judge(database, key, mine.predictions[0].id, secrets[1])
        await run_sql(database, "ANALYZE")
        needles = [secret.encode() for secret in secrets]
        # A vector's bytes are stored unchanged on its page.
        needles.append(text.embedding)
        assert find_in_files(server, needles) == needles

        await erasures(database).erase_user(ada, actor=None)
    assert scrub(url, lambda _line: None)
    with psycopg.connect(url, autocommit=True) as connection:
        for (table,) in connection.execute(
            "SELECT format('%I', relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall():
            rows = str(connection.execute(f"SELECT t::text FROM {table} t").fetchall())
            assert not [secret for secret in (*secrets, str(ada)) if secret in rows and table not in _ABOUT]
    content = dump_database(url)
    assert not [secret for secret in secrets if secret in content]
    assert find_in_files(server, needles) == []


# The account stays, and the audit log records the erasure.
_ABOUT = ("users", "audit_log")


def test_statistics_are_collected_of_no_column_that_holds_what_can_be_erased(url: str) -> None:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT attrelid::regclass::text, attname FROM pg_attribute WHERE attstattarget = 0"
        ).fetchall()
        assert ("text_inputs", "content") in rows
        assert ("predictions", "unit") in rows
        assert {("text_inputs", "sealed"), ("feedback", "sealed"), ("idempotency", "sealed")} <= set(rows)
        [storage] = connection.execute(
            "SELECT attstorage FROM pg_attribute WHERE attrelid = 'embeddings'::regclass AND attname = 'embedding'"
        ).fetchone()
        assert storage in ("p", b"p")
    assert revisions.downgrade(url, "0003") == "0003"
    assert revisions.upgrade(url) == revisions.head()
