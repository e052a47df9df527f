"""A change of embedding space over a real database: nothing is missed, doubled or mixed, whatever happens meanwhile."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from db.connection.engine import Database
from db.embeddings.reembedding import ReembeddingRepository
from db.embeddings.segments import Segments
from db.embeddings.spaces import SpaceRepository, SpaceState
from db.embeddings.vectors import VectorRepository
from db.errors import Conflict, NotFound, Unavailable
from db.predictions.submissions import Failed, Stored, Submission
from db.privacy.erasure import ErasureRepository
from db.search.similarity import SimilarityRepository
from serving.control.maintenance import Maintenance
from serving.spaces.space_filler import SpaceFiller
from tests.support.postgres import SPACE
from tests.support.reembedding import (
    NEXT,
    DeterministicEncoders,
    build_space,
    count_vectors_by_text,
    new_worker,
    run_until_idle,
    search_space,
    text_in,
    vector_in,
)
from tests.support.row_factories import new_idempotency, new_key, new_submission, new_writer, run_sql, text_id

pytestmark = pytest.mark.anyio


class Lost(Exception):
    """The process is gone."""


async def store_texts(database: Database, *contents: str, space: str = SPACE) -> list[UUID]:
    """Texts as the writer stores them, long ago."""
    key = await new_key(database)
    texts = [text_in(space, content) for content in contents]
    assert await new_writer(database, space).commit([new_submission(key, texts)]) == [Stored()]
    await run_sql(database, "UPDATE text_inputs SET created_at = now() - interval '1 hour'")
    return [text.id for text in texts]


def numbered_texts(count: int, word: str = "text") -> list[str]:
    return [f"{word} {number}" for number in range(count)]


async def states(database: Database) -> dict[str, str]:
    return dict(await SpaceRepository(database).states())


async def test_a_space_is_built_switched_to_and_back_and_the_other_removed(database: Database) -> None:
    ids = await store_texts(database, *numbered_texts(30))
    spaces = SpaceRepository(database)
    assert await spaces.ensure_live(SPACE) == SPACE
    assert await spaces.ensure_live("another default") == SPACE
    await spaces.begin(NEXT, actor=None)
    await spaces.begin(NEXT, actor=None)
    work = new_worker(database)
    await run_until_idle(work)
    assert await states(database) == {SPACE: SpaceState.LIVE, NEXT: SpaceState.WHOLE}
    live, beside = await spaces.list()
    assert (live.name, live.vectors, beside.name, beside.vectors) == (SPACE, 30, NEXT, 30)
    await spaces.switch(NEXT, actor=None)
    await spaces.switch(NEXT, actor=None)
    assert await states(database) == {NEXT: SpaceState.LIVE, SPACE: SpaceState.WHOLE}
    # Texts that are written after the switch are in the previous space too, so that one can switch back.
    (late,) = await store_texts(database, "written after", space=NEXT)
    with pytest.raises(Conflict, match="1 texts"):
        await spaces.switch(SPACE, actor=None)
    await run_until_idle(new_worker(database))
    await spaces.switch(SPACE, actor=None)
    await spaces.switch(NEXT, actor=None)
    for space in (SPACE, NEXT):
        assert await count_vectors_by_text(database, space) == dict.fromkeys([*ids, late], 1)
    with pytest.raises(Conflict, match="was live a moment ago"):
        await spaces.leave(SPACE, actor=None)
    await spaces.leave(SPACE, actor=None, followed=0)
    await spaces.leave(SPACE, actor=None)
    with pytest.raises(Conflict, match="being removed"):
        await spaces.begin(SPACE, actor=None)
    keeping = Maintenance(database, space="any")
    await keeping.tidy()
    await keeping.merge()
    while await Segments(database, SPACE).drop_next(grace=0) is not None:
        pass
    while await work.step() is not None:
        pass
    assert await states(database) == {NEXT: SpaceState.LIVE}
    assert await run_sql(database, "SELECT DISTINCT spaces FROM text_inputs") == [([NEXT],)]
    assert await run_sql(database, "SELECT DISTINCT space FROM segments") == [(NEXT,)]
    assert await count_vectors_by_text(database, NEXT) == dict.fromkeys([*ids, late], 1)
    acts = await run_sql(database, "SELECT action, subject, detail FROM audit_log ORDER BY id")
    assert [act for act in acts if act[0].startswith("space.")] == [
        ("space.begin", NEXT, {}),
        ("space.switch", NEXT, {"before": SPACE}),
        ("space.switch", SPACE, {"before": NEXT}),
        ("space.switch", NEXT, {"before": SPACE}),
        ("space.leave", SPACE, {}),
    ]
    # The name is free again.
    await spaces.begin(SPACE, actor=None)


async def test_a_switch_is_refused_while_texts_lack_a_vector(database: Database) -> None:
    await store_texts(database, *numbered_texts(5))
    spaces = SpaceRepository(database)
    await spaces.ensure_live(SPACE)
    with pytest.raises(NotFound):
        await spaces.switch(NEXT, actor=None)
    await spaces.begin(NEXT, actor=None)
    with pytest.raises(Conflict, match="5 texts"):
        await spaces.switch(NEXT, actor=None)
    with pytest.raises(Conflict, match="remove it first"):
        await spaces.begin("a third", actor=None)
    with pytest.raises(Conflict, match="is live"):
        await spaces.leave(SPACE, actor=None)
    await run_until_idle(new_worker(database))
    # A text that came just now is on its way, and holds nothing up.
    key = await new_key(database)
    fresh = new_submission(key, [text_in(SPACE, "fresh")])
    assert await new_writer(database).commit([fresh]) == [Stored()]
    await spaces.switch(NEXT, actor=None)
    assert await spaces.live() == NEXT
    # Writes into the previous space by processes that haven't switched yet are waited for.
    assert not await spaces.is_caught_up(NEXT, within=0)
    await run_until_idle(new_worker(database))
    assert await spaces.is_caught_up(NEXT, within=0)
    assert not await spaces.is_caught_up("unknown")


async def test_what_is_killed_in_the_middle_goes_on_and_doubles_nothing(database: Database) -> None:
    ids = await store_texts(database, *numbered_texts(40))
    # Without predictions only the round finds the texts.
    await run_sql(database, "DELETE FROM predictions")
    spaces = SpaceRepository(database)
    await spaces.ensure_live(SPACE)
    await spaces.begin(NEXT, actor=None)
    await Segments(database, NEXT).ensure()
    encoders = DeterministicEncoders()

    async def killed(_texts: Sequence[str]) -> None:
        if len(encoders.batches) > 2:
            raise Lost

    encoders.before = killed
    filling = SpaceFiller(
        ReembeddingRepository(database, space=NEXT),
        lambda texts: encoders.embed(NEXT, texts),
        page=16,
        batch=8,
    )
    with pytest.raises(Lost):
        await run_until_idle(filling)
    assert sum((await count_vectors_by_text(database, NEXT)).values()) == 16
    assert not filling.is_whole
    # Two of them at once, as when a control is started beside one that is not dead yet.
    await asyncio.gather(run_until_idle(new_worker(database)), run_until_idle(new_worker(database)))
    assert await count_vectors_by_text(database, NEXT) == dict.fromkeys(ids, 1)
    assert (await states(database))[NEXT] == SpaceState.WHOLE


async def test_texts_that_are_written_meanwhile_are_in_both_spaces_once(database: Database) -> None:
    await store_texts(database, *numbered_texts(20))
    spaces, encoders = SpaceRepository(database), DeterministicEncoders()
    await spaces.ensure_live(SPACE)
    await spaces.begin(NEXT, actor=None)
    key, old, new = await new_key(database), new_writer(database), new_writer(database, NEXT)
    written: set[str] = set()

    async def written_meanwhile(texts: Sequence[str]) -> None:
        if len(encoders.batches) > 3:
            return
        word = f"meanwhile {len(encoders.batches)}"
        fresh = new_submission(key, [text_in(SPACE, word)])
        # The same texts as are embedded now, by who writes into the other space already.
        same = new_submission(key, [text_in(NEXT, text) for text in texts[:3]])
        assert await old.commit([fresh]) == [Stored()]
        assert await new.commit([same]) == [Stored()]
        written.add(word)

    encoders.before = written_meanwhile
    work = new_worker(database, encoders)
    await run_until_idle(work)
    await asyncio.sleep(0.6)
    await run_until_idle(work)
    assert written
    everything = dict.fromkeys([text_id(each) for each in [*numbered_texts(20), *written]], 1)
    for space in (SPACE, NEXT):
        assert await count_vectors_by_text(database, space) == everything


async def test_erasure_during_the_work_leaves_no_vector_in_either_space(database: Database) -> None:
    ids = await store_texts(database, *numbered_texts(6))
    spaces, encoders = SpaceRepository(database), DeterministicEncoders()
    await spaces.ensure_live(SPACE)
    await spaces.begin(NEXT, actor=None)
    erasures = ErasureRepository(database, SimilarityRepository(database, space=SPACE), space=SPACE)

    async def erased(_texts: Sequence[str]) -> None:
        encoders.before = None
        # Read already, not stored yet.
        await erasures.erase_text(ids[0], actor=None)

    encoders.before = erased
    await run_until_idle(new_worker(database, encoders))
    assert "text 0" in encoders.batches[0][1]
    receipt = await erasures.erase_text(ids[1], actor=None)
    assert (receipt.erased.texts, receipt.erased.embeddings) == (1, 2)
    for space in (SPACE, NEXT):
        assert await count_vectors_by_text(database, space) == dict.fromkeys(ids[2:], 1)
    gone = await run_sql(database, "SELECT count(*) FROM embeddings WHERE text_id = ANY(%s)", ids[:2])
    assert gone == [(0,)]


async def test_searches_see_each_text_once_before_and_after_the_switch(database: Database) -> None:
    ids = await store_texts(database, *numbered_texts(40))
    spaces = await build_space(database)
    old, new = Segments(database, SPACE), Segments(database, NEXT)
    # One segment with an index and an open one, in both.
    for segments in (old, new):
        assert await segments.roll(1) is not None
        assert await segments.index_next() is not None
    await store_texts(database, "one more")
    await run_until_idle(new_worker(database))
    everything = {*ids, text_id("one more")}
    for space in (SPACE, NEXT):
        result = await search_space(database, space, "text 7")
        assert sorted(each for each, _ in result) == sorted(everything)
        # By its own vector a text is the nearest: those of the other space would be anywhere.
        assert result[0] == (text_id("text 7"), pytest.approx(1.0, abs=1e-3))
        assert result[1][1] < 0.5
    await spaces.switch(NEXT, actor=None)
    of_both = [
        await VectorRepository(database, space=space).of_texts(list(everything)) for space in (SPACE, NEXT)
    ]
    assert [set(each) for each in of_both] == [everything] * 2
    assert of_both[1][ids[3]] == pytest.approx(vector_in(NEXT, "text 3"), abs=1e-3)


async def test_a_batch_of_two_spaces_is_stored_in_each(database: Database) -> None:
    await SpaceRepository(database).ensure_live(SPACE)
    await Segments(database, NEXT).ensure()
    key = await new_key(database)
    kept = new_idempotency(key, "again")
    sent = [
        new_submission(key, [text_in(SPACE, "old")]),
        new_submission(key, [text_in(NEXT, "new")], idempotency=kept),
        new_submission(key, [text_in(NEXT, "both")]),
        new_submission(key, [text_in(SPACE, "both")]),
    ]
    spaces = [SPACE, NEXT, NEXT, SPACE]
    batch = [_in(space, each) for space, each in zip(spaces, sent, strict=True)]
    assert await new_writer(database, "nowhere").commit(batch) == [Stored()] * 4
    assert await count_vectors_by_text(database, SPACE) == {
        text_id("old"): 1,
        text_id("new"): 0,
        text_id("both"): 1,
    }
    assert await count_vectors_by_text(database, NEXT) == {
        text_id("old"): 0,
        text_id("new"): 1,
        text_id("both"): 1,
    }
    # A submission for a space without a segment fails alone, and the rest is stored.
    lost, fine = await new_writer(database, SPACE).commit(
        [_in("nowhere", new_submission(key)), _in(SPACE, new_submission(key))]
    )
    assert isinstance(lost, Failed)
    assert isinstance(lost.error, Unavailable)
    assert fine == Stored()


async def test_nothing_is_stored_in_a_space_that_leaves(database: Database) -> None:
    await store_texts(database, *numbered_texts(3))
    spaces, encoders = SpaceRepository(database), DeterministicEncoders()
    await spaces.ensure_live(SPACE)
    await spaces.begin(NEXT, actor=None)

    async def leaves(_texts: Sequence[str]) -> None:
        await spaces.leave(NEXT, actor=None)

    encoders.before = leaves
    work = new_worker(database, encoders)
    await work.step()
    await work.step()
    assert sum((await count_vectors_by_text(database, NEXT)).values()) == 0
    # Maintenance that had seen it before it left may open a segment once more.
    await Segments(database, NEXT).ensure()
    assert await Segments(database, NEXT).retire() >= 1
    assert not await spaces.delete_if_empty(NEXT)
    while await Segments(database, NEXT).drop_next(grace=0) is not None:
        pass
    while await work.step() is not None:
        pass
    assert await states(database) == {SPACE: SpaceState.LIVE}


async def test_the_reason_for_a_pause_is_shown_until_it_continues(database: Database) -> None:
    await store_texts(database, *numbered_texts(2))
    spaces = SpaceRepository(database)
    await spaces.ensure_live(SPACE)
    await spaces.begin(NEXT, actor=None)
    assert await spaces.record_obstacle(NEXT, "no encoder")
    assert (await spaces.list())[1].reason == "no encoder"
    assert await spaces.record_progress(NEXT, pace=2.5)
    _, beside = await spaces.list()
    assert (beside.reason, beside.pace, beside.seen_at is not None) == (None, 2.5, True)
    assert not await spaces.record_progress("unknown", pace=None)
    recent = ReembeddingRepository(database, space=NEXT)
    now = datetime.now(UTC)
    assert len(await recent.list_recent(now - timedelta(minutes=1), limit=10)) == 2
    assert await recent.list_recent(now + timedelta(minutes=1), limit=10) == []


def _in(space: str, sent: Submission) -> Submission:
    return replace(sent, space=space)
