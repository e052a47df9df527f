"""The cost of storing: the platform compared with itself with a writer that stores nothing (`benchmarks/unstored`).

A burst of a minute, in rounds; and ten minutes during which segments are closed and indexed.
Run by `python -m benchmarks.storing`.
"""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.load import Load, Result, measured
from benchmarks.report import middle, ratios, report
from benchmarks.servers import Platform, platform

CLIENTS = 64


def burst(platform: Platform, seconds: float, seed: int) -> Result:
    """Single texts, none of them twice."""
    return measured(platform.url, platform.key, Load(clients=CLIENTS, seconds=seconds, warm_up=5, seed=seed))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--sustained", type=float, default=600, help="seconds; 600 closes a segment or two; 0: none"
    )
    arguments = parser.parse_args()
    path = os.pathsep.join([str(Path(__file__).with_name("unstored")), os.environ.get("PYTHONPATH", "")])
    stored: list[Result] = []
    unstored: list[Result] = []
    found: dict[str, Any] = {}
    # Both are up all the time, and one of them is asked: idle, they cost each other the same.
    with platform() as mine, platform(PYTHONPATH=path) as forgetful:
        for number in range(arguments.rounds):
            stored.append(burst(mine, arguments.seconds, number))
            unstored.append(burst(forgetful, arguments.seconds, number))
        rates = ([result.per_second for result in stored], [result.per_second for result in unstored])
        rows = [
            ("what", "requests/s", "÷ without storing", "goal"),
            (f"with storing, {arguments.seconds:.0f} s", middle(rates[0]), middle(ratios(*rates)), "≥ 0.90"),
            ("without storing", middle(rates[1]), "", ""),
        ]
        if arguments.sustained:
            before = burst(forgetful, arguments.seconds, 90)
            long = burst(mine, arguments.sustained, 91)
            after = burst(forgetful, arguments.seconds, 92)
            without = (before.per_second + after.per_second) / 2
            found["sustained"] = {name: asdict(result) for name, result in
                                  (("before", before), ("with", long), ("after", after))}  # fmt: skip
            rows.append(
                (f"with storing, {arguments.sustained:.0f} s, {long.requests:,} texts",
                 f"{long.per_second:.0f}", f"{long.per_second / without:.2f}", "≥ 0.80")
            )  # fmt: skip
        kept = mine.call("/v1/predictions?limit=2")["items"]
        none = forgetful.call("/v1/predictions?limit=2")["items"]
    if not kept or len(none) > 1:
        raise RuntimeError("the switch did not switch")
    found |= {
        "stored": [asdict(result) for result in stored],
        "unstored": [asdict(result) for result in unstored],
    }
    report("storing", rows, found, {"with storing": rates[0], "without": rates[1]}, "requests per second")


if __name__ == "__main__":
    main()
