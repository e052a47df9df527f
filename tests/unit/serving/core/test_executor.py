"""Background computing: off the event loop, one at a time, bounded; its errors reach the caller."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from serving.core.executor import BackgroundExecutor
from serving.errors import Overloaded

pytestmark = pytest.mark.anyio


@pytest.fixture
async def executor() -> AsyncIterator[BackgroundExecutor]:
    executor = BackgroundExecutor(waiting=1)
    yield executor
    await executor.close()


async def test_the_loop_goes_on_while_it_computes(executor: BackgroundExecutor) -> None:
    begun, go = threading.Event(), threading.Event()

    def compute() -> str:
        begun.set()
        assert go.wait(10)
        return threading.current_thread().name

    work = asyncio.create_task(executor.run(compute))
    await asyncio.to_thread(begun.wait, 10)
    go.set()
    assert (await work).startswith("valence-aside")


async def test_what_it_raises_is_raised(executor: BackgroundExecutor) -> None:
    with pytest.raises(ZeroDivisionError):
        await executor.run(lambda: 1 // 0)
    assert await executor.run(lambda: 7) == 7


async def test_more_than_may_wait_is_refused_until_there_is_room_again(executor: BackgroundExecutor) -> None:
    go = threading.Event()
    held = [asyncio.create_task(executor.run(lambda: go.wait(10))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await executor.run(lambda: None)
    # A caller that leaves frees its place only when its work has ended.
    held[0].cancel()
    await asyncio.gather(held[0], return_exceptions=True)
    with pytest.raises(Overloaded):
        await executor.run(lambda: None)
    go.set()
    await held[1]
    assert await executor.run(lambda: 1) == 1
