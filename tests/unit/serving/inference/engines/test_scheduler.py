"""The scheduler's order: small passes overtake bulk ones, which are never starved."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from serving.inference.engines.scheduler import Scheduler


class Runway:
    """One thread, blocked by a first pass until the test releases it; it notes the order of the others."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(1)
        self.order: list[str] = []
        self._held, self._begun = Event(), Event()
        self._callers = ThreadPoolExecutor(8)
        self._first = self._callers.submit(
            lambda: list(self.scheduler.map(self._hold, ["first"], bulk=False))
        )
        self._begun.wait(10)

    def _hold(self, name: str) -> None:
        self._begun.set()
        self._held.wait(10)

    def queue(self, names: list[str], *, bulk: bool) -> None:
        """Queue passes; they wait before this returns."""
        for name in names:
            self.scheduler._submit(self.order.append, name, bulk=bulk)

    def release(self) -> list[str]:
        self._held.set()
        list(self.scheduler.map(self.order.append, ["last"], bulk=True))
        return self.order


def test_small_passes_overtake_bulk_ones() -> None:
    runway = Runway()
    runway.queue(["b1", "b2"], bulk=True)
    runway.queue(["s1"], bulk=False)
    assert runway.release() == ["s1", "b1", "b2", "last"]


def test_bulk_gets_every_fourth_pass_while_small_ones_keep_coming() -> None:
    runway = Runway()
    runway.queue(["b1", "b2"], bulk=True)
    runway.queue([f"s{n}" for n in range(8)], bulk=False)
    order = runway.release()
    assert [order.index("b1"), order.index("b2")] == [2, 6]
    assert sorted(order) == sorted(["b1", "b2", *(f"s{n}" for n in range(8)), "last"])


def test_results_keep_the_order_of_their_inputs_and_an_error_is_the_callers() -> None:
    scheduler = Scheduler(3)
    assert list(scheduler.map(lambda n: n * n, range(20), bulk=True)) == [n * n for n in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(scheduler.map(lambda n: 1 // n, [1, 0, 1], bulk=False))
    assert list(scheduler.map(lambda n: n, [1], bulk=False)) == [1]
