"""The grounds of faults: separate platforms on this machine, on loopback only."""

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.faults.fault import Missing
from tests.support.live import LivePlatform, live_platform
from tests.support.tracking import tracking_server

DISK_MIB = 1536
CLOCK = "VALENCE_FAULTS_CLOCK"


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
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("a C compiler")
    with tempfile.TemporaryDirectory(prefix="valence-clock-") as folder:
        Path(folder).chmod(0o755)
        library, offset = Path(folder, "clock.so"), Path(folder, "offset")
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
        offset.write_bytes(struct.pack("=q", 0))
        with live_platform(LD_PRELOAD=str(library), **{CLOCK: str(offset)}) as platform:
            yield platform
