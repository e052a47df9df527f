"""Control groups (version 1): processes move into a new group with a limit, and back.

Owns only groups that it makes, beside those of everybody else. Needs root.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.faults.fault import Missing

_ROOT = Path("/sys/fs/cgroup")
_MEMBERS = "cgroup.procs"


@contextmanager
def limited(controller: str, limits: dict[str, str], processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Keep these processes, and those they start, under the limits until the block ends.

    Raises:
        Missing: no such controller here, or not allowed.
    """
    root = _ROOT / controller
    if os.geteuid() != 0 or not (root / _MEMBERS).exists():
        raise Missing(f"root and the {controller} controller of cgroup version 1")
    group = root / f"valence-faults-{os.getpid()}"
    group.mkdir()
    try:
        homes = {_home(controller, process.pid) for process in processes}
        for name, value in limits.items():
            (group / name).write_text(value)
        for process in processes:
            (group / _MEMBERS).write_text(str(process.pid))
        yield
    finally:
        home = root / homes.pop().lstrip("/") if homes else root
        for pid in (group / _MEMBERS).read_text().split():
            with suppress(OSError):
                (home / _MEMBERS).write_text(pid)
        group.rmdir()


def _home(controller: str, pid: int) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path
    return "/"
