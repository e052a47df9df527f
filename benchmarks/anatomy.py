"""The parts of a prediction's time, and how they grow with load, replicas and stored texts.

Stages are means of the platform's own histograms. Processor time is that of the platform's processes, by kind; the load
generator takes the rest of the cores. Run by `python -m benchmarks.anatomy`.
"""

import argparse
import asyncio
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.load import Load, Result, measured
from benchmarks.report import report
from benchmarks.search import SPACE, fill
from benchmarks.servers import Platform, platform

STAGES = ("queue", "infer", "store")
CLIENTS = (1, 8, 32, 64, 128)
REPLICAS = ((1, 1), (2, 1), (1, 2), (2, 2))
TEXTS = (0, 50_000, 200_000)
_SAMPLE = re.compile(r'_prediction_stage_duration_seconds_(sum|count)\{stage="(\w+)"\} (\S+)')


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """A load's result, the mean milliseconds of its stages, and the processor milliseconds a request by process."""

    result: Result
    stages: Mapping[str, float]
    processor: Mapping[str, float]


def dissect(mine: Platform, clients: int, seconds: float) -> Anatomy:
    """Run one load of single texts and measure its parts."""
    load = Load(clients=clients, seconds=seconds, warm_up=3, seed=clients)
    measured(mine.url, mine.key, Load(clients=clients, seconds=1, warm_up=2, seed=clients + 1))
    before, used, started = _stages(mine), mine.processor(), time.perf_counter()
    result = measured(mine.url, mine.key, load)
    after, spent = _stages(mine), mine.processor()
    # Everything that was counted includes the warm-up, so what it is divided by does, too.
    answered = result.per_second * (time.perf_counter() - started)
    return Anatomy(
        result=result,
        stages={stage: _mean_ms(stage, before, after) for stage in STAGES},
        processor={name: 1e3 * (spent[name] - used.get(name, 0)) / answered for name in spent},
    )


def _mean_ms(
    stage: str, before: Mapping[tuple[str, str], float], after: Mapping[tuple[str, str], float]
) -> float:
    """Return the mean between two scrapes; NaN if different ingress replicas answered them."""
    counted = after["count", stage] - before["count", stage]
    total = after["sum", stage] - before["sum", stage]
    return 1e3 * total / counted if counted > 0 and total >= 0 else float("nan")


def _stages(mine: Platform) -> dict[tuple[str, str], float]:
    request = urllib.request.Request(mine.url + "/metrics", headers={"Authorization": f"Bearer {mine.key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read().decode()
    return {(kind, stage): float(value) for kind, stage, value in _SAMPLE.findall(text)}


def _row(name: str, found: Anatomy) -> tuple[object, ...]:
    one = found.result
    stages = (f"{found.stages[stage]:.1f}" for stage in STAGES)
    processor = (f"{found.processor[name]:.2f}" for name in found.processor)
    return name, one.per_second, one.p50, one.p99, *stages, *processor


@contextmanager
def _replicas(encoders: int, ingresses: int) -> Iterator[Platform]:
    settings = {
        "VALENCE_ENCODER_MIN_REPLICAS": str(encoders),
        "VALENCE_ENCODER_MAX_REPLICAS": str(encoders),
        "VALENCE_INGRESS_REPLICAS": str(ingresses),
        "VALENCE_ENCODER_CPUS": "0.3",
    }
    with platform(**settings) as mine:
        yield mine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15)
    arguments = parser.parse_args()
    head = ("", "requests/s", "p50 ms", "p99 ms", *(f"{stage} ms" for stage in STAGES))
    found: dict[str, Any] = {}
    tables: dict[str, list[tuple[object, ...]]] = {}

    def take(table: str, name: str, mine: Platform, clients: int) -> None:
        one = dissect(mine, clients, arguments.seconds)
        found.setdefault(table, {})[name] = asdict(one)
        first = (*head, *(f"{process}, CPU ms" for process in one.processor))
        tables.setdefault(table, [first]).append(_row(name, one))

    with platform() as mine:
        for clients in CLIENTS:
            take("anatomy_load", f"{clients} client{'s' * (clients > 1)}", mine, clients)
        stored = 0
        for texts in TEXTS:
            if texts > stored:
                vectors = mine.call(
                    "/v1/embeddings", {"model": SPACE, "input": [f"text {n}" for n in range(100)]}
                )["data"]
                known = np.array([row["embedding"] for row in vectors])
                asyncio.run(fill(mine, texts - stored, known))
                stored = texts
            take("anatomy_data", f"{texts:,} texts stored before", mine, 32)
    for table in ("anatomy_load", "anatomy_data"):
        report(table, tables[table], {"results": found[table]})
    for encoders, ingresses in REPLICAS:
        with _replicas(encoders, ingresses) as several:
            take("anatomy_replicas", f"{encoders} encoder, {ingresses} ingress", several, 64)
    report("anatomy_replicas", tables["anatomy_replicas"], {"results": found["anatomy_replicas"]})


if __name__ == "__main__":
    main()
