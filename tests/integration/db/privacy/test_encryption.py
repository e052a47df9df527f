"""Encrypted columns in real PostgreSQL: nothing in plain text, everything readable, keys rotated under writers."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from db.accounts.audit import AuditFilters, AuditRepository
from db.accounts.keys import Key
from db.analytics.disagreements import DisagreementRepository
from db.analytics.replay import ReplayRepository
from db.analytics.windows import Window, WindowRepository
from db.backup.scrub import scrub
from db.connection.engine import Database
from db.core.cipher import Cipher
from db.embeddings.reembedding import ReembeddingRepository
from db.errors import Conflict, ForeignTextKeys, Unavailable, Unreadable
from db.predictions.feedback import FeedbackRepository, Judgement, NewFeedback
from db.predictions.idempotency import IdempotencyRepository
from db.predictions.predictions import PredictionRepository
from db.predictions.submissions import Failed, Mismatch, NewText, Replayed, Stored, Submission
from db.privacy.erasure import ErasureRepository
from db.privacy.rotation import KeyRotation, RotationResult, SealedKind
from db.schema import revisions
from db.schema.roles import Role
from db.search.keywords import KeywordRepository
from db.search.similarity import SimilarityRepository
from tests.support.postgres import SPACE, TestServer, open_database
from tests.support.role_urls import RoleUrls
from tests.support.row_factories import (
    count_rows,
    new_idempotency,
    new_key,
    new_submission,
    new_text,
    new_writer,
    now,
    run_sql,
)
from tests.support.stored_content import dump_database, find_in_files, read_tables

pytestmark = pytest.mark.anyio

ONE, TWO = b"1" * 32, b"2" * 32
OLD = Cipher({"one": ONE})
BOTH = Cipher({"two": TWO, "one": ONE})
NEW = Cipher({"two": TWO})
WITHDRAWN = Cipher({"two": TWO}, seals=False)


def quiet(_line: str) -> None: ...


async def judge(
    database: Database, key: Key, prediction_id: UUID, comment: str, *, again: str | None = None
) -> Judgement:
    given = NewFeedback(
        prediction_id=prediction_id,
        holder_id=key.holder_id,
        key_id=key.id,
        is_correct=False,
        label="negative",
        comment=comment,
    )
    kept = new_idempotency(key, again, answer=b"") if again else None
    result = await FeedbackRepository(database).put(
        given, idempotency=kept, render=lambda judgement: json.dumps(judgement.comment).encode()
    )
    assert isinstance(result, Judgement)
    return result


async def store_values(database: Database, text: str, comment: str, answer: str) -> tuple[Key, Submission]:
    """Store a prediction of a text with feedback, and an idempotent answer for each."""
    key = await new_key(database)
    kept = new_idempotency(key, "predict", answer=answer.encode())
    sent = new_submission(key, [new_text(text)], idempotency=kept)
    assert await new_writer(database).commit([sent]) == [Stored()]
    await judge(database, key, sent.predictions[0].id, comment, again="judge")
    return key, sent


async def read_values(database: Database, key: Key, sent: Submission) -> tuple[str, str | None, bytes, bytes]:
    """Return the text, the comment and the two answers as the repositories read them."""
    prediction = await PredictionRepository(database).get(sent.predictions[0].id)
    kept = IdempotencyRepository(database)
    answers = [await kept.find(key.holder_id, "/v1/predict", name) for name in ("predict", "judge")]
    assert answers[0] is not None
    assert answers[1] is not None
    return prediction.text, prediction.feedback[0].comment, answers[0].answer, answers[1].answer


def counts_by_key(done: RotationResult) -> Mapping[str, tuple[int, int, int]]:
    return {
        name: (counts[SealedKind.TEXTS], counts[SealedKind.COMMENTS], counts[SealedKind.ANSWERS])
        for name, counts in done.stored.items()
    }


async def test_with_a_key_neither_sql_nor_a_dump_nor_the_files_hold_what_people_wrote(
    server: TestServer, url: str
) -> None:
    secrets = [
        "Ouagadougou-1 is where I live",
        "the comment says Vladivostok-2",
        "an answer with Antananarivo-3",
    ]
    async with open_database(url, cipher=OLD) as database:
        key, sent = await store_values(database, *secrets)
        # Once more, for the values that are written when a row exists already.
        assert isinstance((await new_writer(database).commit([sent]))[0], Replayed)
        await judge(database, key, sent.predictions[0].id, secrets[1])
        await run_sql(database, "ANALYZE")
        text, comment, answer, kept = await read_values(database, key, sent)
        assert (text, comment, answer.decode(), json.loads(kept)) == (*secrets, secrets[1])
    for content in (read_tables(url), dump_database(url)):
        assert str(sent.predictions[0].id) in content
        # Nor the digest of a request, which would let a guess be tested.
        for secret in (*(secret.encode() for secret in secrets), hashlib.sha256(b"body").digest()):
            assert secret.decode("latin-1") not in content
            assert secret.hex() not in content
    assert find_in_files(server, [secret.encode() for secret in secrets]) == []


async def test_what_was_plain_is_gone_from_the_files_once_it_was_encrypted_and_scrubbed(
    server: TestServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ["Tegucigalpa-4 before encryption", "Reykjavik-5 in a comment", "Ljubljana-6 in an answer"]
    needles = [*(secret.encode() for secret in secrets), b"tegucigalpa"]
    async with open_database(url) as database:
        key, sent = await store_values(database, *secrets)
        # The index has its words.
        await KeywordRepository(database, space=SPACE).merge()
    assert find_in_files(server, needles) == needles
    reader = psycopg.connect(url)
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    reader.execute("SELECT")
    async with open_database(url, cipher=OLD) as database:
        text, comment, answer, _ = await read_values(database, key, sent)
        assert (text, comment, answer.decode()) == tuple(secrets)
        done = await KeyRotation(database).run(quiet)
        assert done.rewritten == {SealedKind.TEXTS: 1, SealedKind.COMMENTS: 1, SealedKind.ANSWERS: 2}
        assert counts_by_key(done) == {"one": (1, 1, 2)}
        text, comment, answer, _ = await read_values(database, key, sent)
        assert (text, comment, answer.decode()) == tuple(secrets)
    assert [secret for secret in secrets if secret in read_tables(url)] == []
    # A snapshot of before keeps the old rows: a rewrite would keep them, too.
    monkeypatch.setattr("db.backup.scrub._SNAPSHOT_SECONDS", 0)
    with pytest.raises(Unavailable, match="still sees"):
        scrub(url, quiet)
    monkeypatch.undo()
    reader.close()
    assert scrub(url, quiet)
    assert find_in_files(server, needles) == []


async def test_every_reader_of_texts_reads_plain_and_encrypted_rows_alike(url: str) -> None:
    async with open_database(url) as database:
        key = await new_key(database)
        plain, later = new_text("a plain one"), new_text("an encrypted one")
        first = new_submission(key, [plain], version="1")
        await new_writer(database).commit([first])
    async with open_database(url, cipher=OLD) as database:
        second = new_submission(key, [later, plain], version="2", label="negative")
        await new_writer(database).commit([second, new_submission(key, [later], version="1")])
        assert await run_sql(database, "SELECT content FROM text_inputs ORDER BY content") == [
            ("",),
            ("a plain one",),
        ]
        both = {plain.id: "a plain one", later.id: "an encrypted one"}
        page = await PredictionRepository(database).list()
        assert {each.text_id: each.text for each in page.items} == both
        near = await SimilarityRepository(database, space=SPACE).search(_vector(later), k=2)
        assert {each.text_id: each.text for each in near.results} == both
        assert near.results[0].text_id == later.id
        window = Window(since=now() - timedelta(hours=1), until=now() + timedelta(hours=1))
        sampled = await WindowRepository(database, space=SPACE).sample("sentiment", window, size=9)
        assert {each.text_id: each.text for each in sampled.texts} == both
        replayed = await ReplayRepository(database, space=SPACE).sample("sentiment", size=9, judged=9)
        assert {each.text_id: each.text for each in replayed} == both
        contrast = await DisagreementRepository(database, space=SPACE).compare(
            "sentiment", "1", "2", window, size=9
        )
        assert {each.text_id: each.text for each in contrast.differences} == both
        embedded = await ReembeddingRepository(database, space="another").read_contents(list(both))
        assert dict(embedded) == both


def _vector(text: NewText):
    import numpy as np

    return np.frombuffer(text.embedding, "<f2").astype(np.float32)


async def test_repetitions_are_answered_out_of_what_is_encrypted(url: str) -> None:
    async with open_database(url, cipher=OLD) as database:
        key = await new_key(database)
        first = new_submission(key, idempotency=new_idempotency(key, "k", answer=b"first"))
        assert await new_writer(database).commit([first]) == [Stored()]
        again = new_submission(key, idempotency=new_idempotency(key, "k", answer=b"second"))
        other = new_submission(key, idempotency=new_idempotency(key, "k", body=b"another"))
        assert await new_writer(database).commit([again]) == [Replayed(status=201, answer=b"first")]
        assert await new_writer(database).commit([other]) == [Mismatch()]
        await run_sql(database, "UPDATE idempotency SET created_at = now() - interval '25 hours'")
        assert await new_writer(database).commit([again]) == [Stored()]
        kept = await IdempotencyRepository(database).find(key.holder_id, "/v1/predict", "k")
        assert kept is not None
        assert kept.answer == b"second"


async def test_a_value_of_another_row_is_refused_by_name_and_harms_no_other_request(url: str) -> None:
    async with open_database(url, cipher=OLD) as database:
        key = await new_key(database)
        one, other = new_text("the one"), new_text("the other")
        kept = [new_idempotency(key, name, answer=name.encode()) for name in ("a", "b")]
        sent = [
            new_submission(key, [text], idempotency=each)
            for text, each in zip((one, other), kept, strict=True)
        ]
        await new_writer(database).commit(sent)
        await run_sql(
            database,
            "UPDATE text_inputs SET sealed = (SELECT sealed FROM text_inputs WHERE id = %s) WHERE id = %s",
            other.id,
            one.id,
        )
        with pytest.raises(Unreadable, match=f"text {one.id} isn't what was encrypted there"):
            await PredictionRepository(database).get(sent[0].predictions[0].id)
        assert (await PredictionRepository(database).get(sent[1].predictions[0].id)).text == "the other"
        await run_sql(
            database,
            "UPDATE idempotency SET sealed = (SELECT sealed FROM idempotency WHERE key = 'b') WHERE key = 'a'",
        )
        fresh = new_submission(key)
        outcomes = await new_writer(database).commit([fresh, *sent])
        assert outcomes[0] == Stored()
        assert isinstance(outcomes[1], Failed)
        assert isinstance(outcomes[1].error, Unreadable)
        assert outcomes[2] == Replayed(status=201, answer=b"b")

        # An unreadable value is left and named, and its key is still needed; it can still be erased.
        async with open_database(url, cipher=BOTH) as turning:
            done = await KeyRotation(turning).run(quiet)
            assert counts_by_key(done) == {"two": (2, 0, 1), "one": (1, 0, 1)}
            assert done.removed_keys == []
            assert str(one.id) in done.unreadable[0]
            erasures = ErasureRepository(turning, SimilarityRepository(turning, space=SPACE), space=SPACE)
            receipt = await erasures.erase_text(one.id, actor=None)
            assert (receipt.erased.texts, receipt.erased.idempotency) == (1, 1)
            done = await KeyRotation(turning).run(quiet)
            assert (done.unreadable, done.removed_keys) == ([], ["one"])


async def test_keys_that_are_missing_or_others_are_refused_at_start_by_their_ids(url: str) -> None:
    async with open_database(url):
        pass
    async with open_database(url, cipher=OLD):
        pass
    for cipher in (None, NEW):
        database = Database(url, cipher=cipher)
        with pytest.raises(ForeignTextKeys, match="key one, which VALENCE_TEXT_KEYS doesn't give"):
            await database.open()
        await database.close()
    database = Database(url, cipher=Cipher({"one": TWO}))
    with pytest.raises(ForeignTextKeys, match="another key as one"):
        await database.open()
    await database.close()
    async with open_database(url, cipher=OLD) as database:
        # A refused process has left nothing.
        assert await run_sql(database, "SELECT id FROM text_keys") == [("one",)]


async def test_a_key_that_was_let_go_is_wanted_again_once_something_is_under_it(url: str) -> None:
    async with open_database(url, cipher=OLD) as before, open_database(url, cipher=BOTH) as after:
        key = await new_key(before)
        assert (await KeyRotation(after).run(quiet)).removed_keys == ["one"]
        text = new_text()
        await new_writer(before).commit([new_submission(key, [text])])
        # So that it stays under its key.
        await run_sql(after, "UPDATE text_inputs SET sealed = sealed || '\\x00' WHERE id = %s", text.id)
        assert counts_by_key(await KeyRotation(after).run(quiet)) == {"one": (1, 0, 0)}
        assert await run_sql(after, "SELECT id FROM text_keys ORDER BY id") == [("one",), ("two",)]


async def test_a_key_that_another_process_has_just_announced_is_kept(url: str) -> None:
    async with open_database(url, cipher=OLD) as rotating:
        key = await new_key(rotating)
        await new_writer(rotating).commit([new_submission(key)])
        async with open_database(url, cipher=BOTH) as announcing:
            assert (await KeyRotation(rotating).run(quiet)).removed_keys == []
            await new_writer(announcing).commit([new_submission(key)])
    database = Database(url, cipher=OLD)
    with pytest.raises(ForeignTextKeys, match="key two"):
        await database.open()
    await database.close()


async def test_keys_change_while_others_write_and_nothing_is_lost(url: str) -> None:
    async with open_database(url) as database:
        key = await new_key(database)
        texts = [new_text() for _ in range(60)]
        await new_writer(database).commit([new_submission(key, texts[:20])])
    async with open_database(url, cipher=OLD) as before, open_database(url, cipher=BOTH) as after:
        await new_writer(before).commit([new_submission(key, texts[20:40])])
        ended = asyncio.Event()
        comments: dict[UUID, str] = {}
        stored = {text.id for text in texts[:40]}

        async def write(database: Database, shift: int) -> None:
            number = 0
            while not ended.is_set():
                number += 1
                chosen = [texts[(number * 7 + shift) % 60], texts[(number + shift) % 60]]
                sent = new_submission(
                    key,
                    list({text.id: text for text in chosen}.values()),
                    idempotency=new_idempotency(key, f"{shift} {number}", answer=b"kept"),
                )
                assert await new_writer(database).commit([sent]) == [Stored()]
                stored.update(text.id for text in chosen)
                for wording in ("first", "last"):
                    comment = f"{wording} {number} {shift}"
                    await judge(database, key, sent.predictions[0].id, comment)
                comments[sent.predictions[0].id] = comment

        # Either rotation may find no value under it.
        let_go: list[str] = []

        async def rotate(rounds: int) -> None:
            for _ in range(rounds):
                let_go.extend((await KeyRotation(after, step_rows=20).run(quiet)).removed_keys)

        async def read() -> None:
            while not ended.is_set():
                for each in (await PredictionRepository(after).list(limit=20)).items:
                    assert each.text == wanted[each.text_id]

        wanted = {text.id: text.content for text in texts}
        beside = [
            asyncio.create_task(each) for each in (write(before, 0), write(after, 1), write(after, 2), read())
        ]
        # Two at once are harmless, too.
        await asyncio.gather(rotate(2), rotate(2))
        ended.set()
        await asyncio.gather(*beside)

        # No process writes with the old key any more.
        done = await KeyRotation(after).run(quiet)
        assert set(counts_by_key(done)) == {"two"}
        assert counts_by_key(done)["two"] == (
            len(stored),
            len(comments),
            await count_rows(after, "idempotency"),
        )
        assert set(let_go) | set(done.removed_keys) == {"one"}
        assert await run_sql(after, "SELECT id FROM text_keys") == [("two",)]
        again = await KeyRotation(after).run(quiet)
        assert set(again.rewritten.values()) == {0}
        [entry] = (await AuditRepository(after).list(AuditFilters(subject="two"), limit=1)).items
        assert (entry.action, entry.detail["let_go"]) == ("texts.encrypt", [])
    async with open_database(url, cipher=NEW) as database:
        for prediction_id, comment in comments.items():
            prediction = await PredictionRepository(database).get(prediction_id)
            assert (prediction.text, prediction.feedback[0].comment) == (wanted[prediction.text_id], comment)


async def test_keys_are_withdrawn_and_words_are_found_again(url: str) -> None:
    async with open_database(url, cipher=NEW) as database:
        key, sent = await store_values(database, "a battery of tests", "the comment", "the answer")
        words = KeywordRepository(database, space=SPACE)
        with pytest.raises(Conflict, match="off, because texts are encrypted"):
            await words.search("battery", limit=1)
        assert await words.merge() >= 0
        with pytest.raises(Conflict, match="valence db encrypt"):
            revisions.downgrade(url, "0008")
    async with open_database(url, cipher=WITHDRAWN) as database:
        new = new_submission(key, [new_text("another battery")])
        await new_writer(database).commit([new])
        with pytest.raises(Conflict):
            await KeywordRepository(database, space=SPACE).search("battery", limit=1)
        done = await KeyRotation(database).run(quiet)
        assert counts_by_key(done) == {"plain": (2, 1, 2)}
        assert done.removed_keys == ["two"]
    async with open_database(url) as database:
        text, comment, answer, _ = await read_values(database, key, sent)
        assert (text, comment, answer) == ("a battery of tests", "the comment", b"the answer")
        hits = await KeywordRepository(database, space=SPACE).search("battery", limit=9)
        assert set(hits.text_ids) == {sent.texts[0].id, new.texts[0].id}
    assert revisions.downgrade(url, "0008") == "0008"
    assert revisions.upgrade(url) == revisions.head()


async def test_an_erasure_finds_comments_and_answers_that_it_cannot_read(url: str) -> None:
    async with open_database(url, cipher=OLD) as database:
        key, sent = await store_values(database, "to be erased", "its comment", "no id stands here in plain")
        bystander_key, bystander = await store_values(database, "to stay", "its comment too", "an answer")
        erasures = ErasureRepository(database, SimilarityRepository(database, space=SPACE), space=SPACE)
        receipt = await erasures.erase_text(sent.texts[0].id, actor=None)
        erased = receipt.erased
        assert (erased.texts, erased.comments, erased.feedback, erased.idempotency) == (1, 1, 1, 2)
        assert await run_sql(
            database, "SELECT count(*) FROM feedback WHERE sealed IS NOT NULL OR comment IS NOT NULL"
        ) == [(1,)]
        assert (await read_values(database, bystander_key, bystander))[:2] == ("to stay", "its comment too")
        # The account of erased users holds no text, so no key is needed.
        assert counts_by_key(await KeyRotation(database).run(quiet)) == {"one": (1, 1, 2)}
        assert key.holder_id != bystander_key.holder_id


async def test_answers_that_a_release_before_kept_are_found_by_what_they_say(database: Database) -> None:
    key = await new_key(database)
    sent = new_submission(key)
    kept = new_idempotency(key, "again", answer=json.dumps({"id": str(sent.predictions[0].id)}).encode())
    await new_writer(database).commit([replace(sent, idempotency=kept)])
    await run_sql(database, "UPDATE idempotency SET names = NULL")
    erasures = ErasureRepository(database, SimilarityRepository(database, space=SPACE), space=SPACE)
    assert (await erasures.erase_text(sent.texts[0].id, actor=None)).erased.idempotency == 1


async def test_the_application_s_role_may_do_all_of_it(role_urls: RoleUrls) -> None:
    async with open_database(role_urls[Role.APPLICATION], cipher=OLD) as database:
        assert (await KeyRotation(database).run(quiet)).removed_keys == []
    async with open_database(
        role_urls[Role.APPLICATION], cipher=BOTH, read_url=role_urls[Role.READER]
    ) as database:
        assert (await KeyRotation(database).run(quiet)).removed_keys == ["one"]
        page = await PredictionRepository(database).list()
        assert page.items
        assert all(each.text.startswith("text ") for each in page.items)
    with (
        psycopg.connect(role_urls[Role.READER]) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT fingerprint FROM text_keys")
