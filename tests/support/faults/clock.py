"""The fault of the clock: it jumps for all processes except PostgreSQL's, and jumps back."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.faults.fault import Injury
from tests.support.faults.grounds import CLOCK
from tests.support.faults.ledger import Ledger
from tests.support.live import LivePlatform


def clock_jump(seconds: int) -> Injury:
    """Move the clock by this many seconds at once."""

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
    # In place: the processes have mapped this file.
    with file.open("r+b") as opened:
        opened.write(struct.pack("=q", seconds))
