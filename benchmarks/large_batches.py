"""Batches of 1,000 texts, all stored, compared with the encoder alone in one process.

Run by `python -m benchmarks.large_batches`.
"""

import argparse
from dataclasses import asdict

from benchmarks.limit import Limit
from benchmarks.load import Load, measured
from benchmarks.report import middle, ratios, report
from benchmarks.servers import platform

SIZE = 1_000
CLIENTS = (1, 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    alone: list[float] = []
    served: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    results = []
    limit = Limit()
    with platform() as mine:
        for number in range(arguments.rounds):
            for clients in CLIENTS:
                result = measured(
                    mine.url,
                    mine.key,
                    Load(
                        path="/v1/predict/batch",
                        shape="texts",
                        size=SIZE,
                        clients=clients,
                        seconds=arguments.seconds,
                        warm_up=8,
                        seed=10 * number + clients,
                    ),
                )
                results.append(asdict(result))
                # Of whole batches: a batch that straddles the end would count for nothing.
                served[clients].append(SIZE * clients / (result.mean / 1000))
            alone.append(limit.per_second(arguments.seconds / 2, SIZE))
    rows = [
        ("what", "texts/s", "÷ in process", "goal"),
        *(
            (f"served and stored, {clients} client{'s' * (clients > 1)}", middle(served[clients]),
             middle(ratios(served[clients], alone)), "≥ 0.80")
            for clients in CLIENTS
        ),
        ("the encoder and its head in process", middle(alone), "", ""),
    ]  # fmt: skip
    bars = {f"{clients} clients": served[clients] for clients in CLIENTS} | {"in process": alone}
    report("large_batches", rows, {"results": results, "in_process": alone}, bars, "texts per second")


if __name__ == "__main__":
    main()
