"""Repeated work: its pauses, the errors it survives, and how it is woken."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from serving.core.periodic import run_periodically, wait_at_most

pytestmark = pytest.mark.anyio


class Ended(BaseException):
    """The end of the test's loop, as a cancellation."""


class Script:
    """Work that raises what is scripted, run by run, and a sleep that takes notes."""

    def __init__(self, outcomes: Sequence[Exception | None]) -> None:
        self._outcomes = list(outcomes)
        self.pauses: list[float] = []
        self.runs = 0

    async def work(self) -> None:
        if not self._outcomes:
            raise Ended
        self.runs += 1
        if (outcome := self._outcomes.pop(0)) is not None:
            raise outcome

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


async def test_an_expected_error_is_logged_with_its_fields_and_the_work_goes_on() -> None:
    script = Script([None, OSError("down"), None])
    with capture_logs() as logs, pytest.raises(Ended):
        await run_periodically(
            script.work, every=3, errors=OSError, event="work.postponed", sleep=script.sleep, chore="sweep"
        )
    assert script.runs == 3
    assert script.pauses == [3, 3, 3]
    assert logs == [{"event": "work.postponed", "log_level": "warning", "chore": "sweep", "error": "down"}]


async def test_another_error_is_logged_with_its_traceback_and_the_work_goes_on() -> None:
    script = Script([ValueError("a bug"), None])
    with capture_logs() as logs, pytest.raises(Ended):
        await run_periodically(
            script.work, every=3, errors=(OSError, KeyError), event="work.postponed", sleep=script.sleep
        )
    assert script.pauses == [3, 3]
    expected = {"event": "work.postponed", "log_level": "error", "error": "a bug", "exc_info": True}
    assert logs == [expected]


async def test_the_pause_after_an_error_may_differ_and_one_may_come_first() -> None:
    script = Script([OSError(), None])
    with pytest.raises(Ended):
        await run_periodically(
            script.work,
            every=0,
            errors=OSError,
            event="work.postponed",
            after_error=1,
            pause_first=True,
            sleep=script.sleep,
        )
    assert script.pauses == [0, 1, 0]


async def test_the_pause_is_read_after_each_run() -> None:
    script = Script([None, None, OSError()])
    with pytest.raises(Ended):
        await run_periodically(
            script.work, every=lambda: 10 * script.runs, errors=OSError, event="late", sleep=script.sleep
        )
    assert script.pauses == [10, 20, 30]


async def test_a_wait_ends_with_the_event_or_with_the_time() -> None:
    wake = asyncio.Event()
    began = time.monotonic()
    await wait_at_most(wake, 0.01)
    assert not wake.is_set()
    wake.set()
    await wait_at_most(wake, 60)
    assert time.monotonic() - began < 30
