"""The cost of encryption: for a text, in the transaction that stores it, and when keys change.

Texts are those of the held-out set. The writer stores batches of 16 sentences, in rounds with and without a key, in
one database. Run by `python -m benchmarks.encryption`.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np

from benchmarks.filling import Store, empty_store
from benchmarks.load import sentences
from benchmarks.report import middle, ratios, report
from benchmarks.words import BATCH, SPACE, round_of
from db.accounts.keys import KeyRepository, NewKey
from db.connection.engine import Database
from db.core.cipher import Cipher, generate_text_key, text_location
from db.embeddings.segments import Segments
from db.predictions.partitions import Partitions
from db.privacy.rotation import KeyRotation
from registry.data.held_out import HeldOutSet

ONE, TWO = generate_text_key("one"), generate_text_key("two")


def microseconds(texts: list[bytes]) -> dict[str, float]:
    """Return the mean time to seal a text and to open it, the best of five rounds."""
    cipher, places = Cipher.parse(ONE), [text_location(uuid4()) for _ in texts]
    sealed: list[bytes] = []

    def best(act: Callable[[], list[bytes | None] | list[bytes]]) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            act()
            times.append(time.perf_counter() - began)
        return min(times) / len(texts) * 1e6

    sealing = best(lambda: [cipher.seal(*each) for each in zip(places, texts, strict=True)])
    sealed = [cipher.seal(*each) or b"" for each in zip(places, texts, strict=True)]
    return {
        "seal": sealing,
        "open": best(lambda: [cipher.open(*each) for each in zip(places, sealed, strict=True)]),
    }


async def opened(url: str, keys: str) -> Database:
    """Open the database under these keys."""
    database = Database(url, cipher=Cipher.parse(keys))
    await database.open()
    return database


async def rotated(url: str, keys: str) -> float:
    """Values a second."""
    database = await opened(url, keys)
    began = time.perf_counter()
    done = await KeyRotation(database).run(lambda _line: None)
    took = time.perf_counter() - began
    await database.close()
    return sum(done.rewritten.values()) / took


async def measured(url: str, arguments: argparse.Namespace) -> None:
    """Fill, measure, print."""
    texts = [text.encode() for text in HeldOutSet.load_builtin().texts]
    alone = microseconds(texts)
    longest = microseconds([os.urandom(20_000)] * 500)
    both = {False: await opened(url, ""), True: await opened(url, ONE)}
    await Partitions(both[True]).ensure(datetime.now(UTC))
    await Segments(both[True], SPACE).ensure()
    holder = uuid4()
    new = NewKey(id=holder, digest=bytes(32), role="client", name="encryption", owner_id=None)
    await KeyRepository(both[True]).create(new, actor=None)
    stores = {keyed: Store(database, SPACE, holder) for keyed, database in both.items()}
    times: dict[bool, list[list[float]]] = {True: [], False: []}
    for number in range(arguments.rounds):
        for keyed, database in both.items():
            times[keyed].append(
                await round_of(database, arguments.batches, stores[keyed], sentences(), number, merging=False)
            )
    stored = arguments.rounds * arguments.batches * BATCH
    for database in both.values():
        await database.close()
    speeds = [await rotated(url, keys) for keys in (ONE, f"{TWO},{ONE}")]
    means = {keyed: [float(np.mean(each)) for each in rounds] for keyed, rounds in times.items()}
    rows = [
        ("what", "", ""),
        (f"a held-out text ({np.mean([len(text) for text in texts]):.0f} bytes): sealed, opened",
         f"{alone['seal']:.1f} µs", f"{alone['open']:.1f} µs"),
        ("20,000 bytes: sealed, opened", f"{longest['seal']:.1f} µs", f"{longest['open']:.1f} µs"),
        (f"a batch of {BATCH} stored with a key, ms; ÷ without", middle(means[True]),
         middle(ratios(means[True], means[False]))),
        ("without a key, ms", middle(means[False]), ""),
        (f"{stored:,} values encrypted; {2 * stored:,} brought under another key",
         f"{speeds[0]:,.0f} a second", f"{speeds[1]:,.0f} a second"),
    ]  # fmt: skip
    kept = {
        "alone": alone,
        "longest": longest,
        "with": times[True],
        "without": times[False],
        "speeds": speeds,
    }
    report("encryption", rows, kept)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=200)
    arguments = parser.parse_args()
    with empty_store() as url:
        asyncio.run(measured(url, arguments))


if __name__ == "__main__":
    main()
