"""The injury of the clock: it jumps under every process of the platform but PostgreSQL's, and jumps back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.fault import Injury
from benchmarks.faults.grounds import CLOCK
from benchmarks.faults.ledger import Ledger
from tests.support.live import LivePlatform


def clock_jump(offset: str) -> Injury:
    """By an offset as libfaketime writes it: `-1h`, `+1d`."""

    @contextmanager
    def hurt(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
        file = Path(platform.settings[CLOCK])
        _write(file, offset)
        try:
            yield
        finally:
            _write(file, "+0")

    return hurt


def _write(file: Path, offset: str) -> None:
    draft = file.with_suffix(".new")
    draft.write_text(offset)
    draft.replace(file)
