"""From nothing to the first answer: start times, idle memory, latency alone and throughput in company.

Starts a platform of its own in a temporary home on a free port, and ends it.
Run by `python -m benchmarks.first_answer`.
"""

import argparse
import time
from dataclasses import asdict
from typing import Any

from benchmarks.load import Load, measured, sentences
from benchmarks.machine import tree_memory
from benchmarks.report import report
from benchmarks.servers import Platform, home

IDLE_SECONDS = 10


def measure(seconds: float) -> dict[str, Any]:
    """All figures, with the machine."""
    sentences()  # Fetched before anything is timed.
    with home() as folder:
        platform = Platform(folder)
        try:
            first = platform.up()
            platform.down()
            later = platform.up()
            time.sleep(IDLE_SECONDS)
            memory = tree_memory(platform.pid)
            alone = measured(platform.url, platform.key, Load(clients=1, seconds=seconds, seed=1))
            company = measured(
                platform.url, platform.key, Load(clients=32, seconds=seconds, warm_up=5, seed=2)
            )
        finally:
            platform.down()
    return {
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
    arguments = parser.parse_args()
    found = measure(arguments.seconds)
    one, many = found["one_client"], found["clients_32"]
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
    report("first_answer", rows, found)


if __name__ == "__main__":
    main()
