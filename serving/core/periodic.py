"""Work that is repeated until its task is cancelled, whatever the database or the network does meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn

import structlog

log = structlog.get_logger(__name__)


async def run_periodically(
    work: Callable[[], Awaitable[object]],
    *,
    every: float | Callable[[], float],
    errors: type[Exception] | tuple[type[Exception], ...],
    event: str,
    after_error: float | None = None,
    pause_first: bool = False,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    **fields: object,
) -> NoReturn:
    """Run `work` again and again with pauses between, until this task is cancelled.

    Args:
        work: one run.
        every: seconds between the end of a run and the next one; a callable is called after each run.
        errors: exceptions that are expected: logged as warnings. After any other one, logged as an error with its
            traceback, the loop goes on, too.
        event: name of what is logged for an exception, with its message as `error`.
        after_error: seconds to pause after an exception, instead of `every`.
        pause_first: whether a pause comes before the first run, too.
        sleep: waits for a number of seconds, or for less if something wakes it.
        **fields: more fields of the warning.
    """

    def pause() -> float:
        return every() if callable(every) else every

    if pause_first:
        await sleep(pause())
    while True:
        try:
            await work()
        except Exception as error:
            if isinstance(error, errors):
                log.warning(event, **fields, error=str(error))
            else:
                log.exception(event, **fields, error=str(error))
            await sleep(pause() if after_error is None else after_error)
        else:
            await sleep(pause())


async def wait_at_most(wake: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, or until the time is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()
