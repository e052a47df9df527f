"""The cost of an evaluation for the clients: latency with and without it under the same load.

Run by `python -m benchmarks.evaluating`.
"""

import argparse
import time
from dataclasses import asdict

from benchmarks.load import Load, measured, start
from benchmarks.report import report
from benchmarks.servers import platform
from registry.store.model_registry import MODEL

CLIENTS = (1, 8)
VERSION = "3"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    rows = [("clients", "figure", "alone", "beside an evaluation", "ratio")]
    kept = {}
    with platform() as mine:
        path = f"/v1/models/{MODEL}/versions/{VERSION}"
        # The first one waits until a fresh installation has built all of its encoders.
        mine.call(f"{path}/evaluate", {})
        while not any(each["report"] for each in mine.call(path)["evaluations"]):
            time.sleep(1)
        for clients in CLIENTS:
            load = Load(clients=clients, seconds=arguments.seconds, warm_up=4, seed=clients)
            alone = measured(mine.url, mine.key, load)
            wait = start(mine.url, mine.key, load)
            time.sleep(load.warm_up)
            mine.call(f"{path}/evaluate", {})
            beside = wait()
            kept[str(clients)] = {"alone": asdict(alone), "beside": asdict(beside)}
            for name in ("p50", "p99"):
                before, during = getattr(alone, name), getattr(beside, name)
                rows.append(
                    (clients, f"{name}, ms", f"{before:.1f}", f"{during:.1f}", f"{during / before:.2f}")
                )
            rows.append(
                (clients, "requests/s", f"{alone.per_second:.0f}", f"{beside.per_second:.0f}",
                 f"{beside.per_second / alone.per_second:.2f}")
            )  # fmt: skip
    report("evaluating", rows, kept)


if __name__ == "__main__":
    main()
