"""Similarity search by vector, idle and while texts are written at 70 % of capacity.

Over stored texts in several segments: full ones behind their HNSW index, and an open one that is scanned.
Run by `python -m benchmarks.search`.
"""

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks.filling import CHUNK, Store, around
from benchmarks.load import Load, Result, measured, sentences, start
from benchmarks.report import middle, ratios, report
from benchmarks.servers import Platform, platform
from db.connection.engine import Database
from db.embedded.server import EmbeddedPostgres
from db.embeddings.segments import ROWS, Segments
from serving.accounts.authentication import parse_key_id
from serving.core.home import read_installation_key
from serving.settings import Settings

Shares: TypeAlias = dict[str, list[float]]

RATE = 20
SPACE = "all-MiniLM-L6-v2"


async def fill(mine: Platform, texts: int, known: np.ndarray) -> None:
    """Store texts with vectors around known ones, each predicted once, in segments as maintenance indexes them."""
    holder = parse_key_id(mine.key)
    assert holder is not None
    key = read_installation_key(Settings(home=mine.home))
    database = Database(EmbeddedPostgres(mine.home).url("valence"), installation_key=key)
    await database.open()
    try:
        segments, store = Segments(database, SPACE), Store(database, SPACE, holder)
        for start_at in range(0, texts, CHUNK):
            await store.put(around(known, CHUNK, seed=start_at))
            if (start_at + CHUNK) % ROWS == 0:
                await segments.roll()
        while await segments.index_next() is not None:
            pass
    finally:
        await database.close()


def searched(mine: Platform, load: Load, shares: Shares) -> Result:
    """Run a load of searches, and add the cores that each kind of process used."""
    before, started = mine.processor(), time.perf_counter()
    result = measured(mine.url, mine.key, load)
    after, took = mine.processor(), time.perf_counter() - started
    for name, seconds in after.items():
        shares[name].append(max(0.0, seconds - before[name]) / took)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--texts", type=int, default=2 * ROWS)
    arguments = parser.parse_args()
    idle: list[Result] = []
    busy: list[Result] = []
    writes: list[Result] = []
    shares: tuple[Shares, Shares] = (defaultdict(list), defaultdict(list))
    with platform() as mine, tempfile.TemporaryDirectory() as folder:
        vectors = Path(folder) / "vectors.npy"
        texts = sentences(5)
        answers = [
            mine.call("/v1/embeddings", {"model": SPACE, "input": texts[start_at : start_at + 100]})
            for start_at in range(0, 500, 100)
        ]
        known = np.array([row["embedding"] for answer in answers for row in answer["data"]])
        np.save(vectors, known)
        asyncio.run(fill(mine, arguments.texts, known))
        capacity = measured(mine.url, mine.key, Load(clients=64, seconds=20, warm_up=5, seed=1))
        for number in range(arguments.rounds):
            searches = Load(
                path="/v1/similar",
                shape="search",
                rate=RATE,
                clients=200,
                seconds=arguments.seconds,
                warm_up=3,
                seed=number,
                vectors=str(vectors),
            )
            idle.append(searched(mine, searches, shares[0]))
            wait = start(
                mine.url,
                mine.key,
                Load(
                    rate=0.7 * capacity.per_second,
                    clients=1_000,
                    seconds=arguments.seconds + 3,
                    seed=30 + number,
                ),
            )
            busy.append(searched(mine, searches, shares[1]))
            writes.append(wait())
    p95 = ([result.p95 for result in busy], [result.p95 for result in idle])
    p50 = ([result.p50 for result in busy], [result.p50 for result in idle])
    rows = [
        (f"{RATE} searches a second, {arguments.texts:,} texts", "idle, ms", "while writing, ms", "ratio", "goal"),
        ("p95", middle(p95[1]), middle(p95[0]), middle(ratios(*p95)), "≤ 2"),
        ("p50", middle(p50[1]), middle(p50[0]), middle(ratios(*p50)), ""),
        ("texts written a second", "", middle([result.per_second for result in writes]),
         f"of {capacity.per_second:.0f}", ""),
        *((f"cores for {name}", middle(shares[0][name]), middle(shares[1][name]), "", "") for name in shares[0]),
    ]  # fmt: skip
    kept = {"idle": [asdict(r) for r in idle], "busy": [asdict(r) for r in busy],
            "writes": [asdict(r) for r in writes], "capacity": asdict(capacity)}  # fmt: skip
    report("search", rows, kept, {"p95 idle": p95[1], "p95 while writing": p95[0]}, "milliseconds")


if __name__ == "__main__":
    main()
