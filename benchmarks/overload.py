"""Arrivals at four times the capacity for a minute, at a fixed rate.

Accepted requests are stored and answered, the rest get 429. Latency counts from the moment a request was due.
Run by `python -m benchmarks.overload`.
"""

import argparse
import time
from dataclasses import asdict

from benchmarks.load import Load, measured, start
from benchmarks.machine import tree_memory
from benchmarks.report import report
from benchmarks.servers import platform

CLIENTS_AT_CAPACITY = 64
TIMES = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with platform() as mine:
        pid = mine.pid
        capacity = measured(
            mine.url, mine.key, Load(clients=CLIENTS_AT_CAPACITY, seconds=30, warm_up=8, seed=1)
        )
        before = tree_memory(pid)["total"]
        over = start(
            mine.url,
            mine.key,
            Load(
                clients=1_800,
                rate=TIMES * capacity.per_second,
                seconds=arguments.seconds,
                warm_up=5,
                seed=2,
            ),
        )
        time.sleep(arguments.seconds)
        during = tree_memory(pid)["total"]
        found = over()
        after = tree_memory(pid)["total"]
        again = measured(mine.url, mine.key, Load(clients=CLIENTS_AT_CAPACITY, seconds=15, warm_up=2, seed=3))
    others = {status: n for status, n in found.statuses.items() if status not in ("201", "429")}
    rows = [
        ("figure", "at capacity (64 clients)", f"at {TIMES} × capacity", "ratio", "goal"),
        ("answered 201, per second", capacity.per_second, found.per_second,
         f"{found.per_second / capacity.per_second:.2f}", "≥ 0.7"),
        ("p99 of the accepted, ms", capacity.p99, found.p99, f"{found.p99 / capacity.p99:.2f}", "≤ 4"),
        ("p50 of the accepted, ms", capacity.p50, found.p50, "", ""),
        ("told 429, per second", 0, round(found.statuses.get("429", 0) / found.seconds, 1), "", ""),
        ("anything else", "", others or "none", "", "none"),
        ("memory, MiB: before · during · after", "", f"{before:.0f} · {during:.0f} · {after:.0f}",
         f"{during / before:.2f}", "flat"),
        ("answered 201, per second, afterwards", "", again.per_second, "", ""),
    ]  # fmt: skip
    kept = {"capacity": asdict(capacity), "overload": asdict(found), "afterwards": asdict(again)}
    bars = {"capacity": [capacity.per_second], "accepted at 4 × capacity": [found.per_second]}
    report("overload", rows, kept, bars, "requests per second")


if __name__ == "__main__":
    main()
