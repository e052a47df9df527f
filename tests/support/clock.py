"""Waiting for other processes: polls, for a bounded time."""

import time
from collections.abc import Callable


def eventually(met: Callable[[], bool], *, within: float, what: str) -> None:
    """Return once `met` is true; fail after `within` seconds with `what` in the message."""
    deadline = time.monotonic() + within
    while not met():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.05)
