"""From nothing to the first answer: start times, idle memory, latency alone and throughput in company.

Starts a platform of its own in a temporary home on a free port, and ends it.
Run by `python -m benchmarks.first_answer`.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.load import measured, sentences, table
from benchmarks.machine import machine, tree_memory

IDLE_SECONDS = 10


class Platform:
    """A platform of this benchmark's own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._home = home
        self._environment = os.environ | {"VALENCE_HOME": str(home), "VALENCE_PORT": str(port)}
        self.url = f"http://127.0.0.1:{port}"

    def up(self) -> float:
        """Start it; seconds to the first prediction."""
        started = time.monotonic()
        self._valence("up", "--json")
        return time.monotonic() - started

    def down(self) -> None:
        """Stop it."""
        self._valence("down")

    @property
    def key(self) -> str:
        """Its admin key."""
        return (self._home / "admin.key").read_text().strip()

    @property
    def pid(self) -> int:
        """Its supervisor."""
        status: dict[str, Any] = json.loads(self._valence("status", "--json"))
        return int(status["pid"])

    def _valence(self, *arguments: str) -> str:
        program = Path(sys.executable).with_name("valence")
        done = subprocess.run(
            [program, *arguments], env=self._environment, stdout=subprocess.PIPE, check=True, text=True
        )
        return done.stdout


def measure(seconds: float) -> dict[str, Any]:
    """All figures, with the machine."""
    sentences()  # Fetched before anything is timed.
    with tempfile.TemporaryDirectory(prefix="valence-bench-", ignore_cleanup_errors=True) as folder:
        # The embedded server may run as a user of its own, who must be able to come by.
        Path(folder).chmod(0o755)
        platform = Platform(Path(folder) / "home")
        try:
            first = platform.up()
            platform.down()
            later = platform.up()
            time.sleep(IDLE_SECONDS)
            memory = tree_memory(platform.pid)
            alone = measured(platform.url, platform.key, clients=1, seconds=seconds, warm_up=3, seed=1)
            company = measured(platform.url, platform.key, clients=32, seconds=seconds, warm_up=5, seed=2)
        finally:
            platform.down()
            shutil.rmtree((Path(folder) / "home" / "postgres").resolve(), ignore_errors=True)
    return {
        "machine": machine(),
        "first_up_seconds": round(first, 1),
        "later_up_seconds": round(later, 1),
        "idle_mib": {name: round(size) for name, size in memory.items()},
        "one_client": asdict(alone),
        "clients_32": asdict(company),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="length of each load")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = measure(arguments.seconds)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    one, many = found["one_client"], found["clients_32"]
    print(found["machine"])
    print("The load generator shares the cores; everything is stored.\n")
    rows = [
        ("figure", "measured", "goal"),
        ("first `valence up` to first answer", f"{found['first_up_seconds']} s", "≤ 60 s"),
        ("later `valence up` to first answer", f"{found['later_up_seconds']} s", "≤ 25 s"),
        (
            "idle memory of the whole platform (PSS)",
            f"{found['idle_mib']['total'] / 1024:.2f} GiB",
            "≤ 2.5 GiB",
        ),
        ("POST /v1/predict, 1 client, p50", f"{one['p50']} ms", "≤ 25 ms"),
        ("POST /v1/predict, 1 client, p99", f"{one['p99']} ms", ""),
        ("POST /v1/predict, 32 clients", f"{many['per_second']} requests/s", "≥ 150"),
        ("POST /v1/predict, 32 clients, p50 · p99", f"{many['p50']} · {many['p99']} ms", ""),
        (
            "answers other than 201",
            str({**one["statuses"], **many["statuses"]}.keys() - {"201"} or "none"),
            "none",
        ),
    ]
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
