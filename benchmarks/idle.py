"""What a platform costs that nobody asks: processor time and memory by process, after its start has settled.

Processor time is what the kernel counts, so other work beside it changes little. Run by `python -m benchmarks.idle`.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from benchmarks.report import report
from benchmarks.servers import Platform, platform

_ROLES = (
    ("ServeReplica:encoder-", "encoders"),
    ("ServeReplica:valence:ingress", "ingress"),
    ("ServeReplica:valence:control", "control"),
    ("ServeController", "Serve's controller"),
    ("HAProxyManager", "Serve's proxies"),
    ("ProxyActor", "Serve's proxies"),
    ("haproxy", "HAProxy"),
    ("postgres", "PostgreSQL"),
    ("serving.standalone.supervisor", "supervisor"),
    ("serving.standalone.processes", "stage"),
    ("gcs_server", "Ray's GCS"),
    ("raylet", "raylet"),
)
_REST, _TOTAL = "the rest of Ray", "all"


def usage(started: Platform) -> tuple[dict[str, float], dict[str, float]]:
    """Return the processor seconds and the proportional memory in MiB of a platform's processes, by role."""
    seconds, memory = {_TOTAL: 0.0}, {_TOTAL: 0.0}
    root = psutil.Process(started.pid)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):
            title = " ".join(process.cmdline()) or process.name()
            role = next((role for part, role in _ROLES if part in title), _REST)
            times, size = process.cpu_times(), process.memory_full_info().pss / 2**20
            for name in (role, _TOTAL):
                seconds[name] = seconds.get(name, 0.0) + times.user + times.system
                memory[name] = memory.get(name, 0.0) + size
    return seconds, memory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settle", type=float, default=60, help="seconds after the start that don't count")
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    with platform() as started:
        time.sleep(arguments.settle)
        before, _ = usage(started)
        began = time.monotonic()
        time.sleep(arguments.seconds)
        after, memory = usage(started)
        elapsed = time.monotonic() - began
    shares = {role: (after[role] - before.get(role, 0.0)) / elapsed for role in after}
    rows: list[Sequence[object]] = [("processes", "of a core", "memory, MiB")]
    for role, share in sorted(shares.items(), key=lambda each: -each[1]):
        rows.append((role, f"{share:.1%}", f"{memory[role]:.0f}"))
    report("idle", rows, {"shares": shares, "memory": memory})


if __name__ == "__main__":
    main()
