"""Segments: each vector is in one of them at every moment, even if a process is killed."""

import asyncio
import contextlib
from uuid import UUID

import numpy as np
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

import db.embeddings.segments
from db.connection.engine import Database
from db.embeddings.segments import Segments
from db.errors import Unavailable
from db.predictions.submissions import Stored
from db.privacy.erasure import ErasureRepository
from db.search.similarity import SimilarityRepository
from tests.support.postgres import SPACE, open_database
from tests.support.row_factories import (
    count_rows,
    new_key,
    new_submission,
    new_text,
    new_writer,
    run_sql,
    unit_vectors,
    wait_for_lock,
)

pytestmark = pytest.mark.anyio

_STATES = "SELECT id, state, rows FROM segments ORDER BY id"


async def test_a_full_segment_is_closed_and_then_indexed(database: Database) -> None:
    key = await new_key(database)
    segments = Segments(database, SPACE)
    await new_writer(database).commit([new_submission(key, [new_text() for _ in range(30)])])
    assert await segments.roll(31) is None
    assert await segments.roll(30) == 2
    assert await segments.roll(30) is None
    await new_writer(database).commit([new_submission(key)])
    assert await run_sql(database, _STATES) == [(1, "closed", 30), (2, "open", None)]
    assert await segments.index_next() == 1
    assert await segments.index_next() is None
    assert await run_sql(database, _STATES) == [(1, "indexed", 30), (2, "open", None)]
    assert await run_sql(database, "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%%hnsw%%'") == [(1,)]


async def test_two_spaces_have_segments_of_their_own(database: Database) -> None:
    key = await new_key(database)
    other = Segments(database, "other")
    assert await other.ensure() == await other.ensure() == 2
    await new_writer(database, "other").commit([new_submission(key)])
    assert await other.roll(1) == 3
    assert await Segments(database, SPACE).roll(1) is None


async def test_many_at_once_roll_once_and_index_once(database: Database) -> None:
    key = await new_key(database)
    segments = Segments(database, SPACE)
    await new_writer(database).commit([new_submission(key, [new_text() for _ in range(10)])])
    assert len([done for done in await asyncio.gather(*(segments.roll(5) for _ in range(4))) if done]) == 1
    done = await asyncio.gather(*(segments.index_next() for _ in range(4)))
    assert [segment for segment in done if segment] == [1]


async def new_indexed_segment(database: Database, rows: int) -> list[UUID]:
    """Create a further indexed segment of the space; return its texts."""
    segments, texts = Segments(database, SPACE), [new_text() for _ in range(rows)]
    await new_writer(database).commit([new_submission(await new_key(database), texts)])
    await segments.roll(1)
    await segments.index_next()
    return [text.id for text in texts]


async def test_small_segments_are_merged_and_the_old_ones_dropped(database: Database) -> None:
    segments, ids = Segments(database, SPACE), []
    for rows in (20, 24, 400, 18):
        ids += await new_indexed_segment(database, rows)
    assert await segments.merge_next() is None, "the three are not yet four times as large as one"
    ids += await new_indexed_segment(database, 22)
    assert await segments.merge_next(memory=1_000) is None, "a graph of that size has no room"
    assert await segments.merge_next() == 7
    assert await segments.merge_next() is None
    states = dict(await run_sql(database, "SELECT state, array_agg(id ORDER BY id) FROM segments GROUP BY 1"))
    assert states == {"open": [6], "indexed": [3, 7], "retired": [1, 2, 4, 5]}
    assert await run_sql(database, "SELECT rows FROM segments WHERE id = 7") == [(84,)]
    similarity = SimilarityRepository(database, space=SPACE)
    neighbours = await similarity.search(unit_vectors(1)[0], k=100, exact=True)
    assert len({neighbour.text_id for neighbour in neighbours.results}) == 100
    assert await segments.drop_next() is None, "searches that began before may still read it"
    assert [await segments.drop_next(grace=0) for _ in range(5)] == [1, 2, 4, 5, None]
    assert {row[0] for row in await run_sql(database, "SELECT text_id FROM embeddings")} == set(ids)
    assert await count_rows(database, "embeddings") == len(ids)
    await new_indexed_segment(database, 20)
    assert await segments.merge_next() == 9, "with this one there is a quarter as much as in the largest"
    assert await run_sql(database, "SELECT id, rows FROM segments WHERE state = 'indexed'") == [(9, 504)]


async def test_a_large_graph_has_more_neighbours(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db.embeddings.segments, "LARGE_ROWS", 30)
    for rows in (16, 15):
        await new_indexed_segment(database, rows)
    assert await Segments(database, SPACE).merge_next(fan_in=2) == 4
    result = await run_sql(
        database, "SELECT tablename, indexdef FROM pg_indexes WHERE indexdef LIKE '%%hnsw%%' ORDER BY 1"
    )
    neighbours = {table: definition.partition("m='")[2].partition("'")[0] for table, definition in result}
    assert neighbours == {"embeddings_1": "16", "embeddings_2": "16", "embeddings_4": "24"}


async def test_erasures_and_late_writes_during_a_merge_are_kept(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the copy and the end of a merge, a text is erased and a slow writer commits."""
    segments = Segments(database, SPACE)
    ids = [text_id for _ in range(4) for text_id in await new_indexed_segment(database, 20)]
    late = new_text()
    vector = [float(value) for value in np.frombuffer(late.embedding, "<f2")]
    built = db.embeddings.segments._index

    async def meanwhile(connection: AsyncConnection, segment: int, rows: int) -> None:
        await built(connection, segment, rows)
        async with await psycopg.AsyncConnection.connect(url) as other:
            await other.execute("DELETE FROM embeddings WHERE text_id = %s", (ids[0],))
            await other.execute("INSERT INTO embeddings SELECT %s, 2, %s::real[]::halfvec", (late.id, vector))

    monkeypatch.setattr(db.embeddings.segments, "_index", meanwhile)
    merged = await segments.merge_next()
    result = await run_sql(database, "SELECT text_id FROM embeddings WHERE segment = %s", merged)
    assert {row[0] for row in result} == {*ids[1:], late.id}


async def test_what_is_erased_while_a_merge_comes_to_its_end_is_in_no_segment(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erasure that waits for the old segments doesn't know the one that replaces them."""
    segments = Segments(database, SPACE)
    ids = [text_id for _ in range(4) for text_id in await new_indexed_segment(database, 5)]
    attach, ending, going = db.embeddings.segments._attach, asyncio.Event(), asyncio.Event()

    async def later(connection: AsyncConnection, segment: int) -> None:
        ending.set()
        await going.wait()
        await attach(connection, segment)

    monkeypatch.setattr(db.embeddings.segments, "_attach", later)
    merging = asyncio.create_task(segments.merge_next())
    await ending.wait()
    erasures = ErasureRepository(database, SimilarityRepository(database, space=SPACE), space=SPACE)
    erasing = asyncio.create_task(erasures.erase_text(ids[0], actor=None))
    await wait_for_lock(database)
    going.set()
    assert await merging == 6
    assert (await erasing).erased.embeddings > 0
    results = {row[0] for row in await run_sql(database, "SELECT text_id FROM embeddings")}
    assert results == set(ids[1:])


async def test_a_segment_is_indexed_once_who_saw_it_open_has_ended(url: str, database: Database) -> None:
    segments, key = Segments(database, SPACE), await new_key(database)
    held = new_text()
    await new_writer(database).commit([new_submission(key, [held])])
    async with await psycopg.AsyncConnection.connect(url) as other:
        await other.execute("SELECT FROM text_inputs WHERE id = %s FOR UPDATE", (held.id,))
        late = asyncio.create_task(new_writer(database).commit([new_submission(key, [held, new_text()])]))
        await wait_for_lock(database)
        assert await segments.roll(1) == 2
        with pytest.raises(Unavailable):
            await segments.index_next(timeout=0.05)
    assert await late == [Stored()]
    assert await segments.index_next() == 1
    assert await run_sql(database, _STATES) == [(1, "indexed", 2), (2, "open", None)]


async def test_nobody_waits_for_long_behind_a_segment_that_is_read(url: str, database: Database) -> None:
    segments = Segments(database, SPACE)
    for _ in range(4):
        await new_indexed_segment(database, 3)
    await segments.merge_next()
    async with await psycopg.AsyncConnection.connect(url) as reader:
        await reader.execute("SELECT FROM embeddings_1")
        with pytest.raises(Unavailable):
            await segments.drop_next(grace=0, timeout=0.05)
    assert await segments.drop_next(grace=0) == 1


async def test_a_killed_merge_leaves_its_number_to_the_next_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = Segments(database, SPACE)
    for _ in range(4):
        await new_indexed_segment(database, 3)

    async def dies(*_: object) -> None:
        raise Unavailable("killed")

    with monkeypatch.context() as broken:
        broken.setattr(db.embeddings.segments, "_catch_up", dies)
        with pytest.raises(Unavailable):
            await segments.merge_next()
    assert (await run_sql(database, _STATES))[-1] == (6, "merging", None)
    assert await count_rows(database, "embeddings") == 12
    merged = await asyncio.gather(*(segments.merge_next() for _ in range(3)))
    assert sorted(merged, key=str) == [6, None, None]


async def test_writing_rolling_indexing_and_kills_leave_each_text_in_one_segment(
    url: str, database: Database
) -> None:
    key = await new_key(database)
    stop = asyncio.Event()
    stored = []

    async def write() -> None:
        while not stop.is_set():
            texts = [new_text() for _ in range(4)]
            with contextlib.suppress(Unavailable):
                assert await new_writer(database).commit([new_submission(key, texts)]) == [Stored()]
                stored.extend(texts)

    async def tend() -> None:
        async with open_database(url) as mine:
            segments = Segments(mine, SPACE)
            while not stop.is_set():
                with contextlib.suppress(Unavailable):
                    await segments.roll(100)
                    await segments.index_next()
                    await segments.merge_next(fan_in=2)
                    await segments.drop_next(grace=1)

    async def search() -> None:
        async with open_database(url) as mine:
            similarity = SimilarityRepository(mine, space=SPACE)
            random = np.random.default_rng(5)
            while not stop.is_set():
                if not stored:
                    await asyncio.sleep(0.01)
                    continue
                text = stored[random.integers(len(stored))]
                vector = np.frombuffer(text.embedding, "<f2").astype(np.float32)
                with contextlib.suppress(Unavailable):
                    neighbours = await similarity.search(vector, k=50, exact=bool(random.integers(2)))
                    ids = [neighbour.text_id for neighbour in neighbours.results]
                    assert len(ids) == len(set(ids))
                    assert ids[0] == text.id

    tasks = [asyncio.create_task(work()) for work in (write, write, tend, tend, search)]
    kills = segment = 0
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as killer, asyncio.timeout(120):
        # A busy machine takes longer until enough has happened.
        while kills < 10 or segment <= 10:
            await asyncio.sleep(0.3)
            kills += 1
            [(segment,)] = await (await killer.execute("SELECT max(id) FROM segments")).fetchall()
            await killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND (query LIKE '%CREATE INDEX%' OR query LIKE '%ATTACH%' "
                "OR query LIKE '%DROP TABLE%' OR query LIKE 'DELETE FROM%' "
                "OR query LIKE '%segments%')"
            )
    stop.set()
    await asyncio.gather(*tasks)
    searched = (
        "FROM embeddings WHERE segment IN "
        "(SELECT id FROM segments WHERE state IN ('open', 'closed', 'indexed'))"
    )
    assert (
        await run_sql(database, f"SELECT text_id, count(*) {searched} GROUP BY 1 HAVING count(*) > 1") == []
    )
    assert await run_sql(database, f"SELECT count(*) {searched}") == [
        (await count_rows(database, "text_inputs"),)
    ]
    assert len(await run_sql(database, "SELECT 1 FROM segments WHERE state = 'open'")) == 1
    ids = {row[0] for row in await run_sql(database, f"SELECT text_id {searched}")}
    assert {text.id for text in stored} <= ids


async def test_a_late_writer_into_an_indexed_segment_is_found_by_its_index(database: Database) -> None:
    key = await new_key(database)
    vectors = unit_vectors(3000)
    segments = Segments(database, SPACE)
    await new_writer(database).commit(
        [new_submission(key, [new_text(vector=vector) for vector in vectors[:2999]])]
    )
    await segments.roll(2999)
    await segments.index_next()
    late = new_text(vector=vectors[2999])
    await run_sql(database, "UPDATE segments SET state = 'closed' WHERE state = 'open'")
    await run_sql(database, "UPDATE segments SET state = 'open' WHERE id = 1")
    await new_writer(database).commit([new_submission(key, [late])])
    await run_sql(database, "UPDATE segments SET state = 'indexed' WHERE id = 1")
    rows = await run_sql(
        database,
        "SELECT text_id FROM embeddings_1 ORDER BY embedding <#> %s::real[]::halfvec LIMIT 1",
        [float(value) for value in vectors[2999]],
    )
    assert rows == [(late.id,)]
