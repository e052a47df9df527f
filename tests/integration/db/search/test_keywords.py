"""Keyword search in real PostgreSQL: web-search syntax, filters, holders and bounds."""

from uuid import UUID

import pytest

from db.accounts.keys import Key
from db.connection.engine import Database
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.search.keywords import RANKED, KeywordRepository
from db.search.similarity import SimilarityFilters
from tests.support.postgres import SPACE
from tests.support.row_factories import new_key, new_submission, new_text, new_writer, run_sql

pytestmark = pytest.mark.anyio

TEXTS = [
    "The battery lasts for days.",
    "The BATTERY died, and the screen too",
    "a dim screen",
    "Ein schöner Bildschirm, naïve café",
    "battery battery battery",
    "nothing of the kind",
]


async def store_texts(database: Database, texts: list[str] = TEXTS) -> tuple[Key, dict[UUID, str]]:
    key = await new_key(database)
    result = [new_text(text) for text in texts]
    for at, text in enumerate(result):
        label = "negative" if at % 2 else "positive"
        await new_writer(database).commit([new_submission(key, [text], label=label)])
    return key, {text.id: text.content for text in result}


def keyword_repository(
    database: Database, *, ranked: int = RANKED, seconds: float = 2.0
) -> KeywordRepository:
    return KeywordRepository(database, space=SPACE, ranked=ranked, seconds=seconds)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("battery", {0, 1, 4}),
        ("battery screen", {1}),
        ("battery or screen", {0, 1, 2, 4}),
        ("battery -days", {1, 4}),
        ('"dim screen"', {2}),
        ('"screen dim"', set()),
        ("BILDSCHIRM", {3}),
        ("naïve café", {3}),
        ("absent", set()),
        ("'; DROP TABLE text_inputs; --", set()),
        ("!!! & | ( :*", set()),
        ("%s %(words)s \\", set()),
    ],
)
async def test_words_mean_what_a_web_search_means(database: Database, wanted: str, found: set[int]) -> None:
    _, texts = await store_texts(database)
    hits = await keyword_repository(database).search(wanted, limit=10)
    assert {texts[text_id] for text_id in hits.text_ids} == {TEXTS[at] for at in found}
    assert hits.complete


async def test_the_text_that_is_fuller_of_them_comes_first(database: Database) -> None:
    _, texts = await store_texts(database)
    hits = await keyword_repository(database).search("battery", limit=2)
    assert texts[hits.text_ids[0]] == "battery battery battery"
    assert len(hits.text_ids) == 2


async def test_filters_and_holders_hold_for_words_too(database: Database) -> None:
    key, texts = await store_texts(database)
    other = await new_key(database)
    (prediction,) = [
        row[0]
        for row in await run_sql(
            database, "SELECT id FROM predictions p WHERE label = 'negative' ORDER BY id LIMIT 1"
        )
    ]
    given = NewFeedback(prediction_id=prediction, holder_id=key.holder_id, key_id=key.id, is_correct=False)
    await FeedbackRepository(database).put(given)
    search = keyword_repository(database).search
    negative = await search("battery", limit=9, filters=SimilarityFilters(sentiment="negative"))
    judged = await search("battery", limit=9, filters=SimilarityFilters(has_feedback=True))
    mine = await search("battery", limit=9, holder=key.holder_id)
    theirs = await search("battery", limit=9, holder=other.holder_id)
    assert [texts[text_id] for text_id in negative.text_ids] == [TEXTS[1]]
    assert [texts[text_id] for text_id in judged.text_ids] == [TEXTS[1]]
    assert len(mine.text_ids) == 3
    assert theirs.text_ids == ()


async def test_shadows_alone_make_no_text_fit(database: Database) -> None:
    key = await new_key(database)
    await new_writer(database).commit([new_submission(key, [new_text("unseen words")], arm="shadow")])
    assert (await keyword_repository(database).search("unseen", limit=9)).text_ids == ()


async def test_frequent_words_are_ranked_among_some_and_it_says_so(database: Database) -> None:
    await store_texts(database, [f"the same {number}" for number in range(30)])
    hits = await keyword_repository(database, ranked=10).search("same", limit=20)
    assert (len(hits.text_ids), hits.complete) == (10, False)


async def test_a_search_that_takes_too_long_ends_incomplete(database: Database) -> None:
    await store_texts(database, ["slow words"])
    async with database.begin() as connection:
        await connection.exec_driver_sql("LOCK TABLE text_inputs IN ACCESS EXCLUSIVE MODE")
        hits = await keyword_repository(database, seconds=0.05).search("slow", limit=9)
    assert (hits.text_ids, hits.complete) == ((), False)
    assert len((await keyword_repository(database).search("slow", limit=9)).text_ids) == 1


async def test_new_words_are_found_before_they_are_merged_and_after(database: Database) -> None:
    await store_texts(database)
    search = keyword_repository(database)
    before = await search.search("battery", limit=9)
    assert await search.merge() > 0
    assert await search.merge() == 0
    assert await search.search("battery", limit=9) == before


async def test_the_index_answers(database: Database) -> None:
    await store_texts(database, [f"word{number} and more" for number in range(300)])
    await run_sql(database, "ANALYZE text_inputs")
    async with database.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        rows = await connection.exec_driver_sql(
            "EXPLAIN SELECT id FROM text_inputs "
            "WHERE to_tsvector('simple'::regconfig, content) @@ websearch_to_tsquery('simple'::regconfig, 'word7')"
        )
        plan = "\n".join(row[0] for row in rows)
    assert "ix_text_inputs_words" in plan


@pytest.mark.parametrize(
    "content",
    ["w" * 20_000, "ö" * 20_000, " ".join(f"w{n}" for n in range(4_000)), "🙂" * 5_000, "a-b.c@d.e/f?g=1"],
)
async def test_any_text_that_may_be_stored_can_be_indexed(database: Database, content: str) -> None:
    key = await new_key(database)
    (outcome,) = await new_writer(database).commit([new_submission(key, [new_text(content)])])
    assert type(outcome).__name__ == "Stored"
