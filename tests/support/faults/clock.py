"""The injury of the clock: it jumps under every process of the platform but PostgreSQL's, and jumps back."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.faults.fault import Injury
from tests.support.faults.grounds import CLOCK
from tests.support.faults.ledger import Ledger
from tests.support.live import LivePlatform


def clock_jump(seconds: int) -> Injury:
    """By so many seconds, at once."""

    @contextmanager
    def hurt(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
        file = Path(platform.settings[CLOCK])
        _write(file, seconds)
        try:
            yield
        finally:
            _write(file, 0)

    return hurt


def _write(file: Path, seconds: int) -> None:
    # In place: the processes have this very file mapped.
    with file.open("r+b") as opened:
        opened.write(struct.pack("=q", seconds))
