"""Champion, challenger and shadow on one encoder: texts a second with three heads compared with one.

Every text is scored by all three, the maximum; then, as in an experiment, by its arm and the shadow. It runs in this
process, because only the replica's work counts. Run by `python -m benchmarks.three_heads`.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import cycle

from benchmarks.limit import encoder_folder, head_folder
from benchmarks.load import sentences
from benchmarks.peers.model import MAX_BATCH
from benchmarks.report import middle, ratios, report
from registry.bundles.bundle import Bundle
from registry.store.records import VersionRecord
from serving.inference.dispatcher import BatchLimits, InferenceItem
from serving.inference.engines.factory import open_encoder
from serving.inference.replica import Replica
from serving.inference.replica_client import ReplicaClient


def version(number: int) -> VersionRecord:
    """Make a version whose head is a copy of its own."""
    return VersionRecord(
        model="sentiment",
        version=str(number),
        kind="head",
        digest=f"head {number}",
        encoder="",
        uri="",
        created_at=datetime.now(UTC),
    )


CHAMPION, CHALLENGER, SHADOW = (version(number) for number in range(3))
# By which versions the texts of a batch are scored, in turn.
WAYS: dict[str, Sequence[Sequence[VersionRecord]]] = {
    "one": [[CHAMPION]],
    "three, every text by its arm and the shadow": [[CHAMPION, SHADOW], [CHALLENGER, SHADOW]],
    "three, every text by all": [[CHAMPION, CHALLENGER, SHADOW]],
}


async def per_second(
    encoders: ReplicaClient, way: Sequence[Sequence[VersionRecord]], seconds: float, texts: list[str]
) -> float:
    """Texts a second, each scored by its versions after one pass; as many batches in flight as a door sends."""
    batches = cycle(
        [texts[first : first + MAX_BATCH] for first in range(0, len(texts) - MAX_BATCH, MAX_BATCH)]
    )
    done, started = 0, time.perf_counter()

    async def slot() -> None:
        nonlocal done
        while time.perf_counter() - started < seconds:
            pairs = zip(next(batches), cycle(way), strict=False)
            await encoders.infer(
                [InferenceItem(text=text, record=each) for text, versions in pairs for each in versions],
                bulk=False,
            )
            done += MAX_BATCH

    await asyncio.gather(*(slot() for _ in range(BatchLimits().batches_in_flight)))
    return done / (time.perf_counter() - started)


async def measure(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Texts a second by way, one figure a round."""
    encoder = open_encoder(Bundle.open(encoder_folder()), threads=2)
    encoder.warm_up(30)
    encoders = ReplicaClient(Replica(encoder, lambda _: head_folder()))
    texts = sentences(3)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for way in WAYS.values():
        await per_second(encoders, way, 2, texts)
    for _ in range(rounds):
        for name, way in WAYS.items():
            found[name].append(await per_second(encoders, way, seconds, texts))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.rounds, arguments.seconds))
    rows: list[Sequence[object]] = [("heads", "texts/s", "÷ one head", "goal")]
    for name, rates in found.items():
        beside = ("", "") if name == "one" else (middle(ratios(rates, found["one"])), "≥ 0.90")
        rows.append((name, middle(rates), *beside))
    report("three_heads", rows, {"results": found}, found, "texts per second")


if __name__ == "__main__":
    main()
