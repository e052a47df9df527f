"""Where faults are tried: platforms of their own on this machine, each as its faults need it. Loopback only."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.fault import Missing
from tests.support.live import LivePlatform, live_platform
from tests.support.tracking import tracking_server

DISK_MIB = 1536
CLOCK = "FAKETIME_TIMESTAMP_FILE"

_FAKETIME = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib")


@contextmanager
def plain() -> Iterator[LivePlatform]:
    """A platform as `valence up` makes it."""
    with live_platform() as platform:
        yield platform


@contextmanager
def small_disk() -> Iterator[LivePlatform]:
    """One whose home lies on a file system of its own, in memory and of a fixed size."""
    if os.geteuid() != 0:
        raise Missing("root, to mount a small file system")
    with tempfile.TemporaryDirectory(prefix="valence-disk-") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0755", "valence-faults", folder]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"a small file system ({done.stderr.strip()})")
        try:
            with live_platform(Path(folder)) as platform:
                yield platform
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def own_registry() -> Iterator[LivePlatform]:
    """One whose registry is an MLflow server, in processes of its own."""
    with tracking_server() as url, live_platform(MLFLOW_TRACKING_URI=url) as platform:
        yield platform


@contextmanager
def faked_clock() -> Iterator[LivePlatform]:
    """One whose processes read the wall clock through libfaketime, by an offset in a file; PostgreSQL's don't."""
    libraries = [Path(root, "faketime", "libfaketime.so.1") for root in _FAKETIME]
    library = next((path for path in libraries if path.exists()), None)
    if library is None:
        raise Missing("libfaketime (Debian: faketime)")
    with tempfile.TemporaryDirectory(prefix="valence-clock-") as folder:
        Path(folder).chmod(0o755)
        offset = Path(folder, "offset")
        offset.write_text("+0")
        with live_platform(
            LD_PRELOAD=str(library),
            **{CLOCK: str(offset)},
            FAKETIME_NO_CACHE="1",
            # Waiting goes by the steady clock, which no jump moves.
            FAKETIME_DONT_FAKE_MONOTONIC="1",
            DONT_FAKE_MONOTONIC="1",
        ) as platform:
            yield platform
