"""Segments: each vector is in one of them at every moment, even if a process is killed."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

import db.embeddings.segments
import db.privacy.erasure
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
_HNSW = "SELECT tablename FROM pg_indexes WHERE indexdef LIKE '%%hnsw%%' ORDER BY 1"


async def test_a_full_segment_is_closed_and_then_indexed(database: Database) -> None:
    key = await new_key(database)
    segments = Segments(database, SPACE)
    await new_writer(database).commit([new_submission(key, [new_text() for _ in range(30)])])
    assert await segments.roll(31) is None
    assert await segments.roll(30) == 2
    assert await segments.roll(30) is None
    await new_writer(database).commit([new_submission(key)])
    assert await run_sql(database, _STATES) == [(1, "closed", 30), (2, "open", None)]
    assert await segments.index_next() == 3, "a copy"
    assert await segments.index_next() is None
    assert await run_sql(database, _STATES) == [(1, "retired", 30), (2, "open", None), (3, "indexed", 30)]
    assert await segments.drop_next() is None, "searches that began before may still read it"
    assert await segments.drop_next(grace=0) == 1
    assert await count_rows(database, "embeddings") == 31
    assert await run_sql(database, _HNSW) == [("embeddings_3",)]


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
    assert len([segment for segment in done if segment]) == 1
    assert len(await run_sql(database, _HNSW)) == 1


async def new_closed_segment(database: Database, rows: int) -> list[UUID]:
    """Close a further segment of the space; return its texts."""
    texts = [new_text() for _ in range(rows)]
    await new_writer(database).commit([new_submission(await new_key(database), texts)])
    await Segments(database, SPACE).roll(1)
    return [text.id for text in texts]


async def new_indexed_segment(database: Database, rows: int) -> list[UUID]:
    """Create a further indexed segment of the space, and nothing to drop; return its texts."""
    ids = await new_closed_segment(database, rows)
    segments = Segments(database, SPACE)
    await segments.index_next()
    while await segments.drop_next(grace=0) is not None:
        pass
    return ids


@dataclass
class HeldBuild:
    """An index build that waits at its end until it may go on."""

    built: asyncio.Event = field(default_factory=asyncio.Event)
    going: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def held_build(monkeypatch: pytest.MonkeyPatch) -> HeldBuild:
    """Hold the first build after its index was made, with all that its transaction has locked."""
    held, index = HeldBuild(), db.embeddings.segments._index

    async def build(connection: AsyncConnection, segment: int, rows: int) -> None:
        await index(connection, segment, rows)
        if not held.built.is_set():
            held.built.set()
            await held.going.wait()

    monkeypatch.setattr(db.embeddings.segments, "_index", build)
    return held


async def test_an_erasure_goes_through_while_an_index_is_built(
    database: Database, held_build: HeldBuild
) -> None:
    segments, ids = Segments(database, SPACE), await new_closed_segment(database, 6)
    building = asyncio.create_task(segments.index_next())
    await held_build.built.wait()
    erasures = ErasureRepository(database, SimilarityRepository(database, space=SPACE), space=SPACE)
    with pytest.MonkeyPatch.context() as strict:
        # An erasure that waits is refused, instead of tried again.
        strict.setattr(db.privacy.erasure, "_ATTEMPTS", 1)
        receipt = await erasures.erase_text(ids[0], actor=None)
    assert not building.done()
    assert receipt.erased.embeddings == 1
    assert await run_sql(database, "SELECT 1 FROM embeddings WHERE text_id = %s", ids[0]) == []
    assert await segments.drop_next(grace=0) is None, "it would wait for the build"
    held_build.going.set()
    assert await building == 3
    assert await run_sql(database, _STATES) == [(1, "retired", 6), (2, "open", None), (3, "indexed", 5)]
    for segment in (1, 3):
        rows = await run_sql(database, f"SELECT text_id FROM embeddings_{segment}")
        assert {row[0] for row in rows} == set(ids[1:])
    assert await run_sql(database, _HNSW) == [("embeddings_3",)]


async def test_an_erasure_counts_a_vector_once_that_a_copy_has_too(database: Database) -> None:
    segments, ids = Segments(database, SPACE), await new_closed_segment(database, 3)
    await segments.index_next()
    assert await run_sql(database, "SELECT count(*) FROM embeddings WHERE text_id = %s", ids[0]) == [(2,)]
    erasures = ErasureRepository(database, SimilarityRepository(database, space=SPACE), space=SPACE)
    receipt = await erasures.erase_text(ids[0], actor=None)
    assert (receipt.erased.embeddings, receipt.near_copies.complete) == (1, True)
    assert await run_sql(database, "SELECT count(*) FROM embeddings WHERE text_id = %s", ids[0]) == [(0,)]


async def test_a_segment_is_indexed_while_others_are_merged(
    database: Database, held_build: HeldBuild
) -> None:
    segments = Segments(database, SPACE)
    held_build.built.set()
    ids = [text_id for _ in range(4) for text_id in await new_indexed_segment(database, 5)]
    held_build.built.clear()
    merging = asyncio.create_task(segments.merge_next())
    await held_build.built.wait()
    ids += await new_closed_segment(database, 3)
    indexed = await segments.index_next()
    held_build.going.set()
    merged = await merging
    assert merged is not None
    assert indexed is not None
    states = await run_sql(database, "SELECT id, rows FROM segments WHERE state = 'indexed' ORDER BY id")
    assert states == [(merged, 20), (indexed, 3)]
    while await segments.drop_next(grace=0) is not None:
        pass
    results = [row[0] for row in await run_sql(database, "SELECT text_id FROM embeddings")]
    assert sorted(results) == sorted(ids)


async def kill_before_the_end(
    build: Callable[[], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let a build of a copy fail after its index is there."""

    async def dies(*_: object) -> None:
        raise Unavailable("killed")

    with monkeypatch.context() as broken:
        broken.setattr(db.embeddings.segments, "_catch_up", dies)
        with pytest.raises(Unavailable):
            await build()


async def test_a_killed_build_leaves_its_number_to_the_next_one_and_no_table(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments, ids = Segments(database, SPACE), await new_closed_segment(database, 3)

    await kill_before_the_end(segments.index_next, monkeypatch)
    assert await run_sql(database, _STATES) == [(1, "closed", 3), (2, "open", None), (3, "merging", None)]
    assert await run_sql(database, "SELECT to_regclass('embeddings_3')") == [(None,)]
    assert await segments.index_next() == 3
    assert await run_sql(database, _STATES) == [(1, "retired", 3), (2, "open", None), (3, "indexed", 3)]
    results = await run_sql(database, "SELECT text_id FROM embeddings WHERE segment = 3")
    assert {row[0] for row in results} == set(ids)


async def test_small_segments_are_merged_and_the_old_ones_dropped(database: Database) -> None:
    segments, ids = Segments(database, SPACE), []
    for rows in (20, 24, 400, 18):
        ids += await new_indexed_segment(database, rows)
    assert await segments.merge_next() is None, "the three are not yet four times as large as one"
    ids += await new_indexed_segment(database, 22)
    assert await segments.merge_next(memory=1_000) is None, "a graph of that size has no room"
    small = [
        row[0] for row in await run_sql(database, "SELECT id FROM segments WHERE rows < 100 ORDER BY id")
    ]
    merged = await segments.merge_next()
    assert await segments.merge_next() is None
    states = dict(
        await run_sql(database, "SELECT state, array_agg(rows ORDER BY id) FROM segments GROUP BY 1")
    )
    assert states == {"open": [None], "indexed": [400, 84], "retired": [20, 24, 18, 22]}
    assert await run_sql(database, "SELECT rows FROM segments WHERE id = %s", merged) == [(84,)]
    similarity = SimilarityRepository(database, space=SPACE)
    neighbours = await similarity.search(unit_vectors(1)[0], k=100, exact=True)
    assert len({neighbour.text_id for neighbour in neighbours.results}) == 100
    assert await segments.drop_next() is None, "searches that began before may still read it"
    assert [await segments.drop_next(grace=0) for _ in range(5)] == [*small, None]
    assert {row[0] for row in await run_sql(database, "SELECT text_id FROM embeddings")} == set(ids)
    assert await count_rows(database, "embeddings") == len(ids)
    await new_indexed_segment(database, 20)
    merged = await segments.merge_next()
    assert merged is not None, "with this one there is a quarter as much as in the largest"
    assert await run_sql(database, "SELECT id, rows FROM segments WHERE state = 'indexed'") == [(merged, 504)]


async def test_a_large_graph_has_more_neighbours(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db.embeddings.segments, "LARGE_ROWS", 30)
    for rows in (16, 15):
        await new_indexed_segment(database, rows)
    assert await Segments(database, SPACE).merge_next(fan_in=2) is not None
    result = await run_sql(
        database,
        "SELECT rows, indexdef FROM pg_indexes JOIN segments ON tablename = 'embeddings_' || id "
        "WHERE indexdef LIKE '%%hnsw%%'",
    )
    neighbours = {rows: definition.partition("m='")[2].partition("'")[0] for rows, definition in result}
    assert neighbours == {16: "16", 15: "16", 31: "24"}


async def test_erasures_and_late_writes_during_a_merge_are_kept(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the copy and the end of a merge, a text is erased and a slow writer commits."""
    segments = Segments(database, SPACE)
    ids = [text_id for _ in range(4) for text_id in await new_indexed_segment(database, 20)]
    late = new_text()
    vector = [float(value) for value in np.frombuffer(late.embedding, "<f2")]
    [(into,)] = await run_sql(database, "SELECT max(id) FROM segments WHERE state = 'indexed'")
    built = db.embeddings.segments._index

    async def meanwhile(connection: AsyncConnection, segment: int, rows: int) -> None:
        await built(connection, segment, rows)
        async with await psycopg.AsyncConnection.connect(url) as other:
            await other.execute("DELETE FROM embeddings WHERE text_id = %s", (ids[0],))
            await other.execute(
                "INSERT INTO embeddings SELECT %s, %s, %s::real[]::halfvec", (late.id, into, vector)
            )

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
    assert await merging is not None
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
    assert await segments.index_next() == 3
    assert await run_sql(database, _STATES) == [(1, "retired", 1), (2, "open", None), (3, "indexed", 2)]


async def test_nobody_waits_for_long_behind_a_segment_that_is_read(url: str, database: Database) -> None:
    segments = Segments(database, SPACE)
    for _ in range(4):
        await new_indexed_segment(database, 3)
    await segments.merge_next()
    [(oldest,)] = await run_sql(database, "SELECT min(id) FROM segments WHERE state = 'retired'")
    async with await psycopg.AsyncConnection.connect(url) as reader:
        await reader.execute(f"SELECT FROM embeddings_{oldest}")
        with pytest.raises(Unavailable):
            await segments.drop_next(grace=0, timeout=0.05)
    assert await segments.drop_next(grace=0) == oldest


async def test_a_killed_merge_leaves_its_number_to_the_next_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = Segments(database, SPACE)
    for _ in range(4):
        await new_indexed_segment(database, 3)

    await kill_before_the_end(segments.merge_next, monkeypatch)
    [(number,)] = await run_sql(database, "SELECT id FROM segments WHERE state = 'merging'")
    assert await count_rows(database, "embeddings") == 12
    merged = await asyncio.gather(*(segments.merge_next() for _ in range(3)))
    assert sorted(merged, key=str) == [number, None, None]


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
    assert await segments.index_next() == 3
    late = new_text(vector=vectors[2999])
    await run_sql(database, "UPDATE segments SET state = 'closed' WHERE state = 'open'")
    await run_sql(database, "UPDATE segments SET state = 'open' WHERE id = 3")
    await new_writer(database).commit([new_submission(key, [late])])
    await run_sql(database, "UPDATE segments SET state = 'indexed' WHERE id = 3")
    rows = await run_sql(
        database,
        "SELECT text_id FROM embeddings_3 ORDER BY embedding <#> %s::real[]::halfvec LIMIT 1",
        [float(value) for value in vectors[2999]],
    )
    assert rows == [(late.id,)]
