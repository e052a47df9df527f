"""The door: bounded admission and timer-free batches.

Owns when a batch leaves and who is in it: one leaves as soon as a slot is free, so an idle system answers at once
and a busy one forms large batches by itself. Never knows what the items are, nor what running a batch does.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from serving.errors import NotReady, Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchObserver(Protocol):
    """Who watches a door; called on the event loop, so it must be quick."""

    def batch(self, items: int, seconds: float) -> None:
        """A batch of `items` ran for `seconds`."""

    def waiting(self, weight: int) -> None:
        """This much waits at the door now."""


class Unwatched:
    """A meter that reads nothing."""

    def batch(self, items: int, seconds: float) -> None:
        """Nothing."""

    def waiting(self, weight: int) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchResult(Generic[Result]):
    """What one party got: its results in order, and how long it waited and was worked on, in milliseconds."""

    results: list[Result]
    queue_ms: float
    run_ms: float


class Entry(Generic[Item, Result]):
    """The items that came together, and the one answer they leave with."""

    __slots__ = ("answer", "arrived", "deadline", "entered", "items", "left", "results", "taken", "weight")

    def __init__(self, items: Sequence[Item], weight: int, deadline: float) -> None:
        self.items = items
        self.weight = weight
        self.deadline = deadline
        self.arrived = perf_counter()
        self.entered = 0.0
        self.taken = 0
        self.left = len(items)
        self.results: list[Result | None] = [None] * len(items)
        self.answer: asyncio.Future[BatchResult[Result]] = asyncio.get_running_loop().create_future()

    def take(self) -> int:
        """The position of the next item to run."""
        if self.taken == 0:
            self.entered = perf_counter()
        self.taken += 1
        return self.taken - 1

    def deliver(self, position: int, result: Result | Exception) -> None:
        """Keep one result; the last one answers, the first error answers at once."""
        if self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
            return
        self.results[position] = result
        self.left -= 1
        if not self.left:
            self.answer.set_result(
                BatchResult(
                    results=self.results,  # type: ignore[arg-type]  # the last None has just been replaced
                    queue_ms=(self.entered - self.arrived) * 1e3,
                    run_ms=(perf_counter() - self.entered) * 1e3,
                )
            )


def _one(_: object) -> int:
    return 1


class Batcher(Generic[Item, Result]):
    """Every item that is admitted gets its own result or an error, once; what there is no room for is refused.

    Parties take turns: a batch takes at most `quantum` items of a party before it looks at the next one, so a
    large party can't make a small one wait for all of it. A party whose caller left is dropped before it runs.

    Args:
        run: runs one batch; gives a result or an exception for each item, in order, or raises for all of them.
        batch_weight: a batch is full at this weight (a heavier item runs alone).
        slots: batches that run at the same time.
        capacity: the weight that may wait.
        longest_wait: seconds; a party that would wait longer, at the rate of late, is refused at once.
        patience: seconds a party may wait before it is refused.
        quantum: weight that a party may send before the others have their turn.
        weigh: weight of one item, 1 unless told.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        batch_weight: int,
        slots: int,
        capacity: int,
        patience: float,
        longest_wait: float = inf,
        quantum: int = 16,
        weigh: Callable[[Item], int] | None = None,
        meter: BatchObserver | None = None,
    ) -> None:
        self._run = run
        self._batch_weight = batch_weight
        self._slots = self._free_slots = slots
        self._capacity = capacity
        self._patience = patience
        self._longest_wait = longest_wait
        self._quantum = quantum
        self._weight_of: Callable[[Item], int] = weigh or _one
        self._meter = meter or Unwatched()
        self._queue: deque[Entry[Item, Result]] = deque()
        self._waiting = 0
        self._rate = 0.0
        self._running: set[asyncio.Task[None]] = set()
        self._pump_due = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """The weight that waits."""
        return self._waiting

    async def submit(self, items: Sequence[Item]) -> BatchResult[Result]:
        """Wait for the turn of all items and give their results.

        Raises:
            Overloaded: there is no room, or the turn did not come in time.
            NotReady: the door is closed.
            Exception: the first error among the items.
        """
        if not items:
            return BatchResult(results=[], queue_ms=0.0, run_ms=0.0)
        if self._closed:
            raise NotReady("this replica is stopping: send the request again")
        weight = sum(map(self._weight_of, items))
        self.require_room(weight)
        party: Entry[Item, Result] = Entry(items, weight, perf_counter() + self._patience)
        self._queue.append(party)
        self._waiting += weight
        self._meter.waiting(self._waiting)
        self._pump_soon()
        return await party.answer

    def require_room(self, weight: int = 1) -> None:
        """Nothing, if a party of this weight would be let in now.

        Raises:
            Overloaded: it would not.
        """
        wait = self._wait()
        if self._waiting and (self._waiting + weight > self._capacity or wait > self._longest_wait):
            raise Overloaded(
                f"{self._waiting:,} texts wait already: slow down and send again",
                retry_after=min(30.0, max(1.0, wait)),
            )

    async def close(self) -> None:
        """Admit nobody more; return when everybody inside has an answer."""
        self._closed = True
        while self._running or self._queue:
            self._pump()
            await asyncio.wait(self._running)

    def _wait(self) -> float:
        """Seconds until all that waits now has left, at the rate of late."""
        return self._waiting / self._rate if self._rate else 0.0

    def _learn(self, weight: int, seconds: float) -> None:
        """Move the rate towards that of a full batch, and of those beside it; a small one says little."""
        rate = weight * (self._slots - self._free_slots) / max(seconds, 1e-6)
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate

    def _pump_soon(self) -> None:
        # Deferred to the end of this turn of the loop, so that requests read in one go share a batch.
        if not self._pump_due and self._free_slots:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        while self._free_slots:
            batch = self._next_batch()
            if not batch:
                return
            self._free_slots -= 1
            # A batch belongs to none of its parties, so it inherits no request's context either.
            task = asyncio.create_task(self._run_batch(batch, full=bool(self._queue)), context=Context())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _next_batch(self) -> list[tuple[Entry[Item, Result], int]]:
        batch: list[tuple[Entry[Item, Result], int]] = []
        room = self._batch_weight
        now = perf_counter()
        while self._queue and room > 0:
            party = self._queue.popleft()
            if party.answer.done():
                self._leave(party)
                continue
            if party.taken == 0 and now > party.deadline:
                self._leave(party)
                party.answer.set_exception(
                    Overloaded("the turn did not come in time: slow down and send again")
                )
                continue
            turn = min(self._quantum, room)
            while turn > 0 and party.taken < len(party.items):
                weight = self._weight_of(party.items[party.taken])
                if batch and weight > room:
                    self._queue.appendleft(party)
                    return batch
                turn -= weight
                room -= weight
                batch.append((party, party.take()))
            if party.taken < len(party.items):
                self._queue.append(party)
            else:
                self._leave(party)
        return batch

    def _leave(self, party: Entry[Item, Result]) -> None:
        self._waiting -= party.weight
        self._meter.waiting(self._waiting)

    async def _run_batch(self, batch: list[tuple[Entry[Item, Result], int]], *, full: bool) -> None:
        started = perf_counter()
        results: Sequence[Result | Exception]
        try:
            results = await self._run([party.items[position] for party, position in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} gave {len(results)} results")
        except Exception as error:
            results = [error] * len(batch)
        seconds = perf_counter() - started
        self._meter.batch(len(batch), seconds)
        if full:
            self._learn(sum(self._weight_of(party.items[position]) for party, position in batch), seconds)
        self._free_slots += 1
        # The next batch leaves before this one is answered: compute never waits for replies.
        self._pump()
        for (party, position), result in zip(batch, results, strict=True):
            party.deliver(position, result)
