"""Waiting for what another process does: by looking, for a bounded time."""

import time
from collections.abc import Callable


def eventually(met: Callable[[], bool], *, within: float, what: str) -> None:
    """Return as soon as `met`; fail after `within` seconds, saying what never happened."""
    deadline = time.monotonic() + within
    while not met():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.05)
