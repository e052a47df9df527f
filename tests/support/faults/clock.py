"""The faults of the clock: it jumps, for all processes or for all except PostgreSQL's, and jumps back."""

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.faults.fault import Injury
from tests.support.faults.grounds import CLOCK, DATABASE_CLOCK
from tests.support.faults.ledger import Ledger
from tests.support.live import LivePlatform

ALONE_SECONDS: Final = 20.0
"""Longer than the pause between two runs of maintenance."""


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


def clocks_jump(seconds: int) -> Injury:
    """Move the platform's clock by this many seconds at once, and PostgreSQL's a while later."""

    @contextmanager
    def hurt(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
        files = [Path(platform.settings[name]) for name in (CLOCK, DATABASE_CLOCK)]
        try:
            _write(files[0], seconds)
            time.sleep(ALONE_SECONDS)
            _write(files[1], seconds)
            yield
        finally:
            for file in files:
                _write(file, 0)

    return hurt


def _write(file: Path, seconds: int) -> None:
    # In place: the processes have mapped this file.
    with file.open("r+b") as opened:
        opened.write(struct.pack("=q", seconds))
