"""The grounds of faults: separate platforms on this machine, on loopback only."""

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from db.embedded.tools import clean_environment
from tests.support.faults.fault import Missing
from tests.support.live import LivePlatform, live_platform
from tests.support.postgres import running_server
from tests.support.tracking import tracking_server

DISK_MIB = 1536
RETENTION_DAYS = 30
CLOCK = "VALENCE_FAULTS_CLOCK"
DATABASE_CLOCK = "VALENCE_FAULTS_DATABASE_CLOCK"
"""Names the file of PostgreSQL's offset, which its processes know as `CLOCK`."""


@contextmanager
def plain() -> Iterator[LivePlatform]:
    """Run a platform as `valence up` starts it."""
    with live_platform() as platform:
        yield platform


@contextmanager
def small_disk() -> Iterator[LivePlatform]:
    """Run a platform whose home is on its own file system, in memory and of a fixed size."""
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
    """Run a platform whose registry is an MLflow server in separate processes."""
    with tracking_server() as url, live_platform(MLFLOW_TRACKING_URI=url) as platform:
        yield platform


@contextmanager
def faked_clock() -> Iterator[LivePlatform]:
    """Run a platform whose processes, except PostgreSQL's, add an offset from a file to the wall clock."""
    with _clock_library() as library:
        settings = {"LD_PRELOAD": str(library), CLOCK: _offset(library, "offset")}
        with live_platform(**settings) as platform:
            yield platform


@contextmanager
def faked_clocks_with_retention() -> Iterator[LivePlatform]:
    """Run a platform that keeps predictions for some days, and its PostgreSQL, each with an offset of its own."""
    with _clock_library() as library:
        settings = {
            "LD_PRELOAD": str(library),
            CLOCK: _offset(library, "offset"),
            DATABASE_CLOCK: _offset(library, "database-offset"),
            "VALENCE_RETENTION_DAYS": str(RETENTION_DAYS),
        }
        preloaded = {"LD_PRELOAD": str(library), CLOCK: settings[DATABASE_CLOCK]}
        # PostgreSQL gets an environment of its own, which no setting reaches.
        with (
            patch("db.embedded.server.clean_environment", return_value=clean_environment() | preloaded),
            running_server() as server,
            live_platform(DATABASE_URL=server.empty(), **settings) as platform,
        ):
            yield platform


@contextmanager
def _clock_library() -> Iterator[Path]:
    """Build the library that adds an offset to the wall clock, in a folder that every user may read."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("a C compiler")
    with tempfile.TemporaryDirectory(prefix="valence-clock-") as folder:
        Path(folder).chmod(0o755)
        library = Path(folder, "clock.so")
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
        yield library


def _offset(library: Path, name: str) -> str:
    file = library.with_name(name)
    file.write_bytes(struct.pack("=q", 0))
    return str(file)
