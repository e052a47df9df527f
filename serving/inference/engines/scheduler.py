"""The threads of a CPU encoder, and whose pass runs next: small batches go first, bulk never starves."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

# While both wait, every so many passes one is bulk's.
_BULK_TURN = 4


class Scheduler:
    """So many passes at a time. A waiting small pass overtakes bulk ones, at most three in a row."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="lane")
        self._small: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._bulk: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._turn = 0
        self._choosing = Lock()

    def map(
        self, work: Callable[[Input], Output], inputs: Sequence[Input], *, bulk: bool
    ) -> Iterator[Output]:
        """Results in the order of the inputs; those not begun are dropped with the iterator."""
        flying: deque[Future[Output]] = deque()
        waiting = deque(inputs)
        try:
            while waiting or flying:
                # One more than can run, so that no thread waits for the caller.
                while waiting and len(flying) <= self.threads:
                    flying.append(self._submit(work, waiting.popleft(), bulk=bulk))
                landed = flying[0].result()
                flying.popleft()
                yield landed
        finally:
            for flight in flying:
                flight.cancel()

    def _submit(self, work: Callable[[Input], Output], given: Input, *, bulk: bool) -> Future[Output]:
        flight: Future[Output] = Future()
        (self._bulk if bulk else self._small).append((flight, lambda: work(given)))
        # One turn for each pass; which pass it is for is decided when a thread is free.
        self._workers.submit(self._run_next)
        return flight

    def _run_next(self) -> None:
        with self._choosing:
            self._turn += 1
            bulk = not self._small or (bool(self._bulk) and self._turn >= _BULK_TURN)
            if bulk:
                self._turn = 0
            flight, work = (self._bulk if bulk else self._small).popleft()
        if not flight.set_running_or_notify_cancel():
            return
        try:
            flight.set_result(work())
        except BaseException as error:
            flight.set_exception(error)
