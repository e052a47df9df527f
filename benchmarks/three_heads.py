"""Champion, challenger and shadow on one encoder: a replica's texts a second for three heads beside one.

In process, because the heads are the replica's business alone. Run by `python -m benchmarks.three_heads`.
"""

import argparse
import asyncio
import time
from datetime import UTC, datetime

from benchmarks.limit import encoder_folder, head_folder
from benchmarks.load import sentences
from benchmarks.peers.model import MAX_BATCH
from benchmarks.report import middle, ratios, report
from registry.bundle import Bundle
from registry.records import VersionRecord
from serving.compute import Ask
from serving.encoder import open_encoder
from serving.replica import RemoteEncoders, Replica


def version(number: int) -> VersionRecord:
    """A version whose head is a copy of its own."""
    return VersionRecord(
        model="sentiment",
        version=str(number),
        kind="head",
        digest=f"head {number}",
        encoder="",
        uri="",
        created_at=datetime.now(UTC),
    )


async def per_second(encoders: RemoteEncoders, heads: int, seconds: float, texts: list[str]) -> float:
    """Texts a second, each scored by so many heads after one pass."""
    versions = [version(number) for number in range(heads)]
    done, started = 0, time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds:
        first = done % (len(texts) - MAX_BATCH)
        batch = texts[first : first + MAX_BATCH]
        await encoders.infer([Ask(text=text, record=each) for text in batch for each in versions], bulk=False)
        done += MAX_BATCH
    return done / taken


async def measure(rounds: int, seconds: float) -> dict[int, list[float]]:
    """Texts a second by heads, one figure a round."""
    encoder = open_encoder(Bundle.open(encoder_folder()), threads=2)
    encoder.warm_up(30)
    encoders = RemoteEncoders(Replica(encoder, lambda _: head_folder()))
    texts = sentences(3)
    await per_second(encoders, 3, 2, texts)
    found: dict[int, list[float]] = {1: [], 3: []}
    for _ in range(rounds):
        for heads, rates in found.items():
            rates.append(await per_second(encoders, heads, seconds, texts))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.rounds, arguments.seconds))
    rows = [
        ("heads", "texts/s", "÷ one head", "goal"),
        ("1", middle(found[1]), "", ""),
        ("3", middle(found[3]), middle(ratios(found[3], found[1])), "≥ 0.90"),
    ]
    bars = {f"{heads} heads": rates for heads, rates in found.items()}
    report("three_heads", rows, {"results": found}, bars, "texts per second")


if __name__ == "__main__":
    main()
