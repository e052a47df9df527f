"""Bounded admission, and batches that wait for no timer.

Decides when a batch starts and which items it holds: a batch starts as soon as one more may run, so an idle system
answers at once and a busy one forms large batches by itself. Never knows what the items are, nor what a run does.
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
    """Watches a batcher. It is called on the event loop, so it must be quick."""

    def observe_batch(self, items: int, seconds: float) -> None:
        """Note that a batch of `items` ran for `seconds`."""

    def observe_waiting(self, weight: int) -> None:
        """Note the weight that waits now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchResult(Generic[Result]):
    """The results of one entry in order, with its waiting time and its running time in milliseconds."""

    results: list[Result]
    queue_ms: float
    run_ms: float


class Entry(Generic[Item, Result]):
    """The items that were submitted together, and the future of their common result."""

    __slots__ = (
        "arrived_at",
        "deadline",
        "future",
        "items",
        "pending",
        "results",
        "started_at",
        "taken",
        "weight",
    )

    def __init__(self, items: Sequence[Item], weight: int, deadline: float) -> None:
        self.items = items
        self.weight = weight
        self.deadline = deadline
        self.arrived_at = perf_counter()
        self.started_at = 0.0
        self.taken = 0
        self.pending = len(items)
        self.results: list[Result | None] = [None] * len(items)
        self.future: asyncio.Future[BatchResult[Result]] = asyncio.get_running_loop().create_future()

    def take(self) -> int:
        """Take the next item to run; return its position."""
        if self.taken == 0:
            self.started_at = perf_counter()
        self.taken += 1
        return self.taken - 1

    def deliver(self, position: int, result: Result | Exception) -> None:
        """Keep one result. The last one resolves the future, an error resolves it at once."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
            return
        self.results[position] = result
        self.pending -= 1
        if not self.pending:
            self.future.set_result(
                BatchResult(
                    results=self.results,  # type: ignore[arg-type]  # the last None has just been replaced
                    queue_ms=(self.started_at - self.arrived_at) * 1e3,
                    run_ms=(perf_counter() - self.started_at) * 1e3,
                )
            )


class Batcher(Generic[Item, Result]):
    """Gives every admitted item its own result or an error, once; refuses an entry that doesn't fit.

    Entries take turns: a batch takes at most `quantum` of one entry before it looks at the next, so a large entry
    can't make a small one wait for all of it. An entry whose caller left is dropped before it runs.

    Args:
        run: runs one batch; returns a result or an exception for each item, in order, or raises for all of them.
        weigh: the weight of an item.
        observer: is called for each batch, and when the waiting weight changes.
        batch_weight: a batch is full at this weight (a heavier item runs alone).
        max_in_flight: the number of batches that run at the same time.
        capacity: the weight that may wait.
        timeout: seconds an entry may wait before it is refused.
        longest_wait: seconds; an entry that would wait longer, at the recent rate, is refused at once.
        quantum: the weight an entry may send before the others have their turn.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        weigh: Callable[[Item], int],
        observer: BatchObserver,
        batch_weight: int,
        max_in_flight: int,
        capacity: int,
        timeout: float,
        longest_wait: float = inf,
        quantum: int = 16,
    ) -> None:
        self._run = run
        self._weigh = weigh
        self._observer = observer
        self._batch_weight = batch_weight
        self._max_in_flight = self._free = max_in_flight
        self._capacity = capacity
        self._timeout = timeout
        self._longest_wait = longest_wait
        self._quantum = quantum
        self._queue: deque[Entry[Item, Result]] = deque()
        self._waiting = 0
        self._rate = 0.0
        self._running: set[asyncio.Task[None]] = set()
        self._start_scheduled = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """The weight that waits."""
        return self._waiting

    async def submit(self, items: Sequence[Item]) -> BatchResult[Result]:
        """Run the items in the coming batches and return their results.

        Raises:
            Overloaded: the items don't fit, or waited too long.
            NotReady: the batcher is closed.
            Exception: the first error among the items.
        """
        if not items:
            return BatchResult(results=[], queue_ms=0.0, run_ms=0.0)
        if self._closed:
            raise NotReady("this replica is stopping: send the request again")
        weight = sum(map(self._weigh, items))
        self.require_room(weight)
        entry: Entry[Item, Result] = Entry(items, weight, perf_counter() + self._timeout)
        self._queue.append(entry)
        self._waiting += weight
        self._observer.observe_waiting(self._waiting)
        self._schedule_start()
        return await entry.future

    def require_room(self, weight: int = 1) -> None:
        """Raise Overloaded unless an entry of this weight would be admitted now."""
        wait = self._estimate_wait()
        if self._waiting and (self._waiting + weight > self._capacity or wait > self._longest_wait):
            raise Overloaded(
                f"{self._waiting:,} texts are waiting already: slow down and send again",
                retry_after=min(30.0, max(1.0, wait)),
            )

    async def close(self) -> None:
        """Admit no entry any more; return when each that was admitted has its result."""
        self._closed = True
        while self._running or self._queue:
            self._start_batches()
            # Nothing runs if every caller that waited has left.
            if self._running:
                await asyncio.wait(self._running)

    def _estimate_wait(self) -> float:
        """Return the seconds until all that waits now has run, at the recent rate."""
        return self._waiting / self._rate if self._rate else 0.0

    def _update_rate(self, weight: int, seconds: float) -> None:
        """Move the rate towards that of the batches in flight. Call it for full batches: a small one says little."""
        rate = weight * (self._max_in_flight - self._free) / max(seconds, 1e-6)
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate

    def _schedule_start(self) -> None:
        # At the end of this turn of the loop, so that requests read in the same turn share a batch.
        if not self._start_scheduled and self._free:
            self._start_scheduled = True
            asyncio.get_running_loop().call_soon(self._start_batches)

    def _start_batches(self) -> None:
        self._start_scheduled = False
        while self._free:
            batch = self._next_batch()
            if not batch:
                return
            self._free -= 1
            # A batch belongs to several requests, so it inherits the context of none.
            task = asyncio.create_task(self._run_batch(batch, full=bool(self._queue)), context=Context())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _next_batch(self) -> list[tuple[Entry[Item, Result], int]]:
        batch: list[tuple[Entry[Item, Result], int]] = []
        room = self._batch_weight
        now = perf_counter()
        while self._queue and room > 0:
            entry = self._queue.popleft()
            if entry.future.done():
                self._subtract(entry)
                continue
            if entry.taken == 0 and now > entry.deadline:
                self._subtract(entry)
                entry.future.set_exception(
                    Overloaded("the request waited too long for its turn: slow down and send again")
                )
                continue
            turn = min(self._quantum, room)
            while turn > 0 and entry.taken < len(entry.items):
                weight = self._weigh(entry.items[entry.taken])
                if batch and weight > room:
                    self._queue.appendleft(entry)
                    return batch
                turn -= weight
                room -= weight
                batch.append((entry, entry.take()))
            if entry.taken < len(entry.items):
                self._queue.append(entry)
            else:
                self._subtract(entry)
        return batch

    def _subtract(self, entry: Entry[Item, Result]) -> None:
        """Take the weight of an entry that left the queue off the waiting weight."""
        self._waiting -= entry.weight
        self._observer.observe_waiting(self._waiting)

    async def _run_batch(self, batch: list[tuple[Entry[Item, Result], int]], *, full: bool) -> None:
        started = perf_counter()
        results: Sequence[Result | Exception]
        try:
            results = await self._run([entry.items[position] for entry, position in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"a batch of {len(batch)} items got {len(results)} results")
        except Exception as error:
            results = [error] * len(batch)
        seconds = perf_counter() - started
        self._observer.observe_batch(len(batch), seconds)
        if full:
            self._update_rate(sum(self._weigh(entry.items[position]) for entry, position in batch), seconds)
        self._free += 1
        # The next batch starts before this one is answered: compute never waits for replies.
        self._start_batches()
        for (entry, position), result in zip(batch, results, strict=True):
            entry.deliver(position, result)
