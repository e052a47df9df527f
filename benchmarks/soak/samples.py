"""What a platform holds at a moment: memory, files, threads, connections, metric series, log and data."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import psycopg

from db.embedded.server import EmbeddedPostgres
from tests.support.live import LivePlatform

MEMORY, FILES, THREADS = "memory, MiB", "open files", "threads"
CONNECTIONS, SERIES = "database connections", "metric series"
LOG, DATA = "log, MiB", "data, MiB"
SHARED = "shared buffers, MiB"
TOTAL = "all"

_GROUPS = (
    ("ServeReplica:encoder-", "encoders"),
    ("ServeReplica:valence:ingress", "ingress"),
    ("ServeReplica:valence:control", "control"),
    ("ServeController", "Serve"),
    ("HAProxyManager", "Serve"),
    ("ProxyActor", "Serve"),
    ("haproxy", "HAProxy"),
    ("serving.standalone", "supervisor"),
    ("evaluation_worker", "evaluations"),
)
_REST = "Ray"
_DATABASE = "PostgreSQL"


def sample(platform: LivePlatform) -> dict[str, dict[str, float]]:
    """Return each measure by group of processes, or in `all`; sizes are proportional sets and bytes on disk.

    PostgreSQL's memory is what is its own: the buffers that its processes share fill to the size that is set.
    """
    found: dict[str, dict[str, float]] = {MEMORY: {}, FILES: {}, THREADS: {}, SHARED: {_DATABASE: 0.0}}
    for process in platform.processes():
        with suppress(psutil.Error):
            with process.oneshot():
                group = _group(process)
                memory = process.memory_full_info()
                own = memory.uss if group == _DATABASE else memory.pss
                figures = {
                    MEMORY: own / 2**20,
                    FILES: float(process.num_fds()),
                    THREADS: float(process.num_threads()),
                }
            found[SHARED][_DATABASE] += (memory.pss - own) / 2**20
            for measure, figure in figures.items():
                for key in (group, TOTAL):
                    found[measure][key] = found[measure].get(key, 0.0) + figure
    found[CONNECTIONS] = {TOTAL: _connections(platform)}
    found[SERIES] = {TOTAL: _series(platform)}
    found[LOG] = {"platform.log": _mebibytes(platform.home / "logs"), "Ray": _ray_logs(platform)}
    found[DATA] = {_DATABASE: _mebibytes(platform.home / "postgres")}
    return found


def _group(process: psutil.Process) -> str:
    title = " ".join(process.cmdline()) or process.name()
    if process.name() == "postgres":
        return _DATABASE
    return next((group for part, group in _GROUPS if part in title), _REST)


def _connections(platform: LivePlatform) -> float:
    with psycopg.connect(EmbeddedPostgres(platform.home).url("valence")) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        ).fetchone()
    assert row is not None
    return float(row[0]) - 1


def _series(platform: LivePlatform) -> float:
    with platform.client() as client:
        for _ in range(5):
            with suppress(httpx.HTTPError):
                text = client.get("/metrics").raise_for_status().text
                return float(sum(not line.startswith("#") for line in text.splitlines()))
            time.sleep(1)
    raise RuntimeError("the metrics can't be read")


def _mebibytes(folder: Path) -> float:
    return sum(_sizes(folder)) / 2**20


def _sizes(folder: Path) -> Iterator[int]:
    for file in folder.rglob("*"):
        # Files come and go under a running database.
        with suppress(OSError):
            if file.is_file() and not file.is_symlink():
                yield file.stat().st_size


def _ray_logs(platform: LivePlatform) -> float:
    sessions = {
        Path(argument.partition("=")[2])
        for process in platform.find_processes("--session_dir=")
        for argument in process.cmdline()
        if argument.startswith("--session_dir=")
    }
    return sum(_mebibytes(session / "logs") for session in sessions)
