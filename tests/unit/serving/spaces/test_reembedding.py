"""Filling a space over texts in memory, and the runner that keeps it going."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from db.embeddings.reembedding import TextPage
from db.schema.tables import NIL_ID
from serving.spaces.reembedding_runner import ReembeddingRunner
from serving.spaces.space_filler import SpaceFiller
from tests.fakes.spaces import FakeSpaceRepository
from tests.fakes.store import FakeStore

pytestmark = pytest.mark.anyio

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeTexts:
    """Texts by number, when they were predicted, and which have a vector."""

    def __init__(self, count: int) -> None:
        self.texts: dict[UUID, datetime] = {
            UUID(int=number): START - timedelta(days=1) for number in range(1, count + 1)
        }
        self.vectors: dict[UUID, list[bytes]] = {}
        self.pages = 0

    def put(self, number: int, at: datetime) -> UUID:
        self.texts[UUID(int=number)] = at
        return UUID(int=number)

    async def read_page(self, after: UUID = NIL_ID, *, limit: int) -> TextPage:
        self.pages += 1
        ids = sorted(each for each in self.texts if each > after)[:limit]
        lacking = [each for each in ids if each not in self.vectors]
        return TextPage(lacking=lacking, last=ids[-1] if len(ids) == limit else None)

    async def list_recent(self, since: datetime, *, limit: int) -> Sequence[UUID]:
        return [each for each, at in self.texts.items() if at >= since and each not in self.vectors][:limit]

    async def read_contents(self, ids: Sequence[UUID]) -> Sequence[tuple[UUID, str]]:
        return [(each, str(each.int)) for each in ids if each in self.texts and each not in self.vectors]

    async def add_vectors(self, ids: Sequence[UUID], vectors: Sequence[bytes]) -> int:
        for each, vector in zip(ids, vectors, strict=True):
            self.vectors.setdefault(each, []).append(vector)
        return len(ids)


class ManualClock:
    """A clock that moves when a test moves it."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time


async def embed(texts: Sequence[str]) -> Any:
    return np.array([[float(text), 1.0] for text in texts], np.float32)


async def test_every_text_gets_the_vector_of_its_own() -> None:
    texts, clock = FakeTexts(10), ManualClock()
    filler = SpaceFiller(texts, embed, page=4, batch=3, now=clock)
    assert not filler.is_whole
    while await filler.step():
        pass
    assert filler.is_whole
    assert filler.added == 10
    assert {each.int: vectors for each, vectors in texts.vectors.items()} == {
        number: [np.array([number, 1.0], "<f2").tobytes()] for number in range(1, 11)
    }


async def test_what_comes_while_a_page_is_filled_waits_for_no_round() -> None:
    texts, clock = FakeTexts(100), ManualClock()
    filler = SpaceFiller(texts, embed, page=50, batch=5, recent_seconds=1.0, now=clock)
    await filler.step()
    await filler.step()
    fresh = texts.put(1000, clock.time)
    await filler.step()
    assert fresh not in texts.vectors
    clock.time += timedelta(seconds=1)
    await filler.step()
    assert fresh in texts.vectors


async def test_a_text_that_was_missed_is_found_by_the_next_round_a_page_a_look() -> None:
    texts, clock = FakeTexts(10), ManualClock()
    filler = SpaceFiller(texts, embed, page=40, later_page=4, batch=8, recent_seconds=1.0, now=clock)
    while await filler.step():
        pass
    # Committed long after its prediction.
    late = texts.put(7_000, START - timedelta(hours=1))
    pages = texts.pages
    assert not await filler.step()
    assert texts.pages == pages
    looks = 0
    while late not in texts.vectors:
        clock.time += timedelta(seconds=1)
        while await filler.step():
            pass
        looks += 1
        assert looks <= 3
    assert texts.pages - pages == 3


async def test_a_batch_that_fails_is_tried_again() -> None:
    texts, clock = FakeTexts(6), ManualClock()
    fails = 2

    async def failing(texts: Sequence[str]) -> Any:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise OSError("no encoder")
        return await embed(texts)

    filler = SpaceFiller(texts, failing, page=6, batch=3, now=clock)
    await filler.step()
    for _ in range(2):
        with pytest.raises(OSError, match="no encoder"):
            await filler.step()
        assert not filler.is_whole
    while await filler.step():
        pass
    assert len(texts.vectors) == 6


class Launches:
    """Processes that end when a test says so."""

    def __init__(self, why: str | None) -> None:
        self.why = why
        self.count = 0

    async def __call__(self) -> str | None:
        self.count += 1
        return self.why


@pytest.mark.parametrize("why", [None, "its process was ended by SIGKILL"])
async def test_the_worker_runs_only_while_another_space_is_built_and_its_death_is_reported(
    why: str | None,
) -> None:
    spaces, launches = FakeSpaceRepository(FakeStore(), "space"), Launches(why)
    reembeddings = ReembeddingRunner(spaces, launches)
    assert await reembeddings.run_once()
    assert launches.count == 0
    await spaces.begin("next", actor=None)
    assert await reembeddings.run_once() == (why is None)
    assert launches.count == 1
    reasons: Mapping[str, str | None] = {name: row.reason for name, row in spaces.rows.items()}
    assert reasons == {"space": None, "next": why}
