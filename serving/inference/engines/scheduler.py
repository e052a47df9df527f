"""The threads of a CPU encoder and the order of its passes.

Small batches go first, and bulk never starves.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

# While both kinds wait, every fourth pass is a bulk one.
_BULK_TURN = 4


class Scheduler:
    """Runs at most `threads` passes at a time. Small passes overtake bulk ones, at most three in a row."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="pass")
        self._small: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._bulk: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._turn = 0
        self._choosing = Lock()

    def map(
        self, work: Callable[[Input], Output], inputs: Sequence[Input], *, bulk: bool
    ) -> Iterator[Output]:
        """Yield results in the order of the inputs; closing the iterator drops those that haven't begun."""
        in_flight: deque[Future[Output]] = deque()
        waiting = deque(inputs)
        try:
            while waiting or in_flight:
                # One more than can run, so that no thread waits for the caller.
                while waiting and len(in_flight) <= self.threads:
                    in_flight.append(self._submit(work, waiting.popleft(), bulk=bulk))
                result = in_flight[0].result()
                in_flight.popleft()
                yield result
        finally:
            for future in in_flight:
                future.cancel()

    def _submit(self, work: Callable[[Input], Output], argument: Input, *, bulk: bool) -> Future[Output]:
        future: Future[Output] = Future()
        (self._bulk if bulk else self._small).append((future, lambda: work(argument)))
        # One turn for each pass; the pass that gets it is chosen when a thread is free.
        self._workers.submit(self._run_next)
        return future

    def _run_next(self) -> None:
        with self._choosing:
            self._turn += 1
            bulk = not self._small or (bool(self._bulk) and self._turn >= _BULK_TURN)
            if bulk:
                self._turn = 0
            future, work = (self._bulk if bulk else self._small).popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


class RunningCalls:
    """Counts the calls that run; entering it gives the number with this one."""

    def __init__(self) -> None:
        self._running = 0
        self._counting = Lock()

    def __enter__(self) -> int:
        with self._counting:
            self._running += 1
            return self._running

    def __exit__(self, *_: object) -> None:
        with self._counting:
            self._running -= 1
