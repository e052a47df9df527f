"""The batcher: which entries form a batch, which are refused, and that each caller gets its own answer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from serving.errors import NotReady, Overloaded
from serving.inference import batcher as module
from serving.inference.batcher import Batcher
from tests.fakes.inference import FakeBatchObserver

pytestmark = pytest.mark.anyio


class Room:
    """A dispatcher that runs batches only when the test says so, and keeps them."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._gates: list[asyncio.Event] = []
        self.entered = asyncio.Event()

    async def run(self, items: Sequence[str]) -> Sequence[str | Exception]:
        gate = asyncio.Event()
        self.batches.append(list(items))
        self._gates.append(gate)
        self.entered.set()
        await gate.wait()
        return [ValueError(item) if item.startswith("bad") else item.upper() for item in items]

    async def until(self, batches: int) -> None:
        while len(self.batches) < batches:
            self.entered.clear()
            await self.entered.wait()

    def open(self, batch: int) -> None:
        self._gates[batch].set()


def new_batcher(
    run: Callable[[Sequence[str]], Awaitable[Sequence[str | Exception]]], **options: Any
) -> Batcher[str, str]:
    defaults = {
        "weigh": lambda _: 1,
        "observer": FakeBatchObserver(),
        "batch_weight": 4,
        "max_in_flight": 1,
        "capacity": 100,
        "timeout": 60,
        "quantum": 2,
    }
    return Batcher(run, **{**defaults, **options})


async def test_an_idle_batcher_runs_a_single_item_at_once() -> None:
    room = Room()
    answer = asyncio.create_task(new_batcher(room.run).submit(["a"]))
    await room.until(1)
    assert room.batches == [["a"]]
    room.open(0)
    assert (await answer).results == ["A"]


async def test_items_that_wait_share_the_next_batch() -> None:
    room = Room()
    batcher = new_batcher(room.run)
    first = asyncio.create_task(batcher.submit(["a"]))
    await room.until(1)
    others = [asyncio.create_task(batcher.submit([name])) for name in "bcdef"]
    await asyncio.sleep(0)
    room.open(0)
    await first
    await room.until(2)
    assert room.batches[1] == ["b", "c", "d", "e"]
    room.open(1)
    await room.until(3)
    room.open(2)
    assert [(await other).results for other in others] == [["B"], ["C"], ["D"], ["E"], ["F"]]


async def test_requests_that_arrive_in_one_turn_of_the_loop_share_a_batch() -> None:
    room = Room()
    batcher = new_batcher(room.run)
    tasks = [asyncio.create_task(batcher.submit([name])) for name in "abc"]
    await room.until(1)
    assert room.batches[0] == ["a", "b", "c"]
    room.open(0)
    await asyncio.gather(*tasks)


async def test_a_large_entry_does_not_keep_small_ones_waiting_for_all_of_it() -> None:
    room = Room()
    batcher = new_batcher(room.run)
    large = asyncio.create_task(batcher.submit([f"l{number}" for number in range(8)]))
    await room.until(1)
    small = asyncio.create_task(batcher.submit(["s"]))
    await asyncio.sleep(0)
    room.open(0)
    await room.until(2)
    assert "s" in room.batches[1]
    for batch in range(1, 3):
        await room.until(batch + 1)
        room.open(batch)
    assert (await small).results == ["S"]
    assert (await large).results == [f"L{number}" for number in range(8)]


async def test_a_bad_item_fails_its_own_entry_only() -> None:
    room = Room()
    batcher = new_batcher(room.run)
    good, bad = asyncio.create_task(batcher.submit(["good"])), asyncio.create_task(batcher.submit(["bad"]))
    await room.until(1)
    room.open(0)
    assert (await good).results == ["GOOD"]
    with pytest.raises(ValueError, match="bad"):
        await bad


async def test_a_batch_that_raises_answers_everybody_in_it_and_the_batcher_goes_on() -> None:
    calls = 0

    async def run(items: Sequence[str]) -> Sequence[str | Exception]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise NotReady("the replica is gone")
        return list(items)

    batcher = new_batcher(run, capacity=10)
    answers = await asyncio.gather(batcher.submit(["a"]), batcher.submit(["b"]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [NotReady, NotReady]
    assert (await batcher.submit(["c"])).results == ["c"]


async def test_what_there_is_no_room_for_is_refused_with_a_time_to_come_back() -> None:
    room = Room()
    batcher = new_batcher(room.run, capacity=2)
    inside = asyncio.create_task(batcher.submit(["a"]))
    await room.until(1)
    waiting = [asyncio.create_task(batcher.submit([name])) for name in "bc"]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refusal:
        await batcher.submit(["d"])
    assert refusal.value.retry_after >= 1
    room.open(0)
    await room.until(2)
    room.open(1)
    await asyncio.gather(inside, *waiting)
    assert batcher.waiting == 0


async def test_who_would_wait_too_long_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module, "perf_counter", lambda: now)
    room = Room()
    batcher = new_batcher(room.run, batch_weight=1, longest_wait=1.5)
    first = asyncio.create_task(batcher.submit(["a"]))
    second = asyncio.create_task(batcher.submit(["b"]))
    third = asyncio.create_task(batcher.submit(["c"]))
    await room.until(1)
    # One text a second: the batcher learns its rate from batches that leave others waiting.
    now = 1.0
    room.open(0)
    await room.until(2)
    fourth = asyncio.create_task(batcher.submit(["d"]))
    await asyncio.sleep(0)
    assert batcher.waiting == 2
    with pytest.raises(Overloaded) as refusal:
        await batcher.submit(["e"])
    assert refusal.value.retry_after == pytest.approx(2)
    for batch in (1, 2, 3):
        await room.until(batch + 1)
        room.open(batch)
    await asyncio.gather(first, second, third, fourth)
    # The queue is empty, so the next one is admitted.
    fifth = asyncio.create_task(batcher.submit(["f"]))
    await room.until(5)
    room.open(4)
    assert (await fifth).results == ["F"]


async def test_an_entry_that_times_out_in_the_queue_is_refused_and_never_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(module, "perf_counter", lambda: now)
    room = Room()
    batcher = new_batcher(room.run, timeout=30)
    first = asyncio.create_task(batcher.submit(["a"]))
    await room.until(1)
    late = asyncio.create_task(batcher.submit(["b"]))
    await asyncio.sleep(0)
    now = 31.0
    in_time = asyncio.create_task(batcher.submit(["c"]))
    await asyncio.sleep(0)
    room.open(0)
    await room.until(2)
    assert room.batches[1] == ["c"]
    with pytest.raises(Overloaded):
        await late
    room.open(1)
    await asyncio.gather(first, in_time)
    assert batcher.waiting == 0


async def test_a_caller_who_left_is_never_computed() -> None:
    room = Room()
    batcher = new_batcher(room.run)
    first = asyncio.create_task(batcher.submit(["a"]))
    await room.until(1)
    left, stays = asyncio.create_task(batcher.submit(["b"])), asyncio.create_task(batcher.submit(["c"]))
    await asyncio.sleep(0)
    left.cancel()
    room.open(0)
    await room.until(2)
    assert room.batches[1] == ["c"]
    room.open(1)
    await asyncio.gather(first, stays)
    assert batcher.waiting == 0


async def test_heavy_items_fill_a_batch_and_one_beyond_the_limit_runs_alone() -> None:
    room = Room()
    batcher = new_batcher(room.run, quantum=4, weigh=len)
    tasks = [asyncio.create_task(batcher.submit([item])) for item in ("aaa", "bbb", "cccccc", "d")]
    for batch, expected in enumerate((["aaa"], ["bbb"], ["cccccc"], ["d"])):
        await room.until(batch + 1)
        assert room.batches[batch] == expected
        room.open(batch)
    await asyncio.gather(*tasks)


async def test_closing_answers_everybody_inside_and_admits_nobody_more() -> None:
    room = Room()
    batcher = new_batcher(room.run)
    inside = asyncio.create_task(batcher.submit(["a"]))
    await room.until(1)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await batcher.submit(["b"])
    room.open(0)
    await closing
    assert (await inside).results == ["A"]


async def test_closing_ends_if_only_those_wait_whose_callers_left() -> None:
    room = Room()
    batcher = new_batcher(room.run)
    left = asyncio.create_task(batcher.submit(["a"]))
    await asyncio.sleep(0)
    left.cancel()
    await batcher.close()
    assert (room.batches, batcher.waiting) == ([], 0)
