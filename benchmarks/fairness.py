"""Single texts at a fixed rate, alone and while another client sends batches of 1,000 without a pause.

Run by `python -m benchmarks.fairness`.
"""

import argparse
from dataclasses import asdict

from benchmarks.load import Load, Result, measured, start
from benchmarks.report import middle, ratios, report
from benchmarks.servers import platform

RATE = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    alone: list[Result] = []
    beside: list[Result] = []
    batches: list[Result] = []
    with platform() as mine:
        for number in range(arguments.rounds):
            singles = Load(rate=RATE, clients=500, seconds=arguments.seconds, warm_up=6, seed=number)
            bulk = Load(
                path="/v1/predict/batch",
                shape="texts",
                size=1_000,
                clients=1,
                seconds=arguments.seconds + 6,
                warm_up=0.1,
                seed=50 + number,
            )
            alone.append(measured(mine.url, mine.key, singles))
            wait = start(mine.url, mine.key, bulk)
            beside.append(measured(mine.url, mine.key, singles))
            batches.append(wait())
    p99 = ([result.p99 for result in beside], [result.p99 for result in alone])
    p50 = ([result.p50 for result in beside], [result.p50 for result in alone])
    rows = [
        (f"{RATE} single texts a second", "alone, ms", "beside batches of 1,000, ms", "ratio", "goal"),
        ("p99", middle(p99[1]), middle(p99[0]), middle(ratios(*p99)), "≤ 3"),
        ("p50", middle(p50[1]), middle(p50[0]), middle(ratios(*p50)), ""),
        ("texts/s of the batches", "", middle([1e6 / result.mean for result in batches]), "", ""),
    ]
    kept = {"alone": [asdict(r) for r in alone], "beside": [asdict(r) for r in beside],
            "batches": [asdict(r) for r in batches]}  # fmt: skip
    report("fairness", rows, kept, {"p99 alone": p99[1], "p99 beside batches": p99[0]}, "milliseconds")


if __name__ == "__main__":
    main()
