"""The cost of giving stored texts the vectors of another embedding space, and of the switch.

A database alone with real sentences: the work of `serving.spaces.reembedding_worker` on one thread, with and
without rests, then the switch, which examines every text. Run by `python -m benchmarks.respacing`.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from benchmarks.filling import Store, empty_store
from benchmarks.limit import space_folder
from benchmarks.load import sentences
from benchmarks.report import report
from db.accounts.keys import KeyRepository, NewKey
from db.connection.engine import Database
from db.embeddings.segments import Segments
from db.embeddings.spaces import SpaceRepository
from db.predictions.partitions import Partitions
from registry.bundles.bundle import Bundle
from serving.inference.engines.factory import open_encoder
from serving.spaces.reembedding_worker import ReembeddingWorker

OLD = "old"
BATCH = 500
SHARES = (1.0, 0.3)


class OneEncoder:
    """The default encoder for every space."""

    def __init__(self, share: float) -> None:
        self._encoder = open_encoder(Bundle.open(space_folder()), threads=1)
        self._share = share

    async def embed(self, space: str, texts: Sequence[str]) -> NDArray[np.float32]:  # noqa: ARG002
        """float32 [n, d]."""
        began = time.monotonic()
        vectors = np.zeros((len(texts), self._encoder.settings.dimensions), np.float32)
        for micro in self._encoder.run(texts):
            vectors[micro.rows] = micro.embedding
        await asyncio.sleep((time.monotonic() - began) * (1 / self._share - 1))
        return vectors


async def measured(url: str, count: int) -> None:
    """Fill, measure, print."""
    database = Database(url, installation_key=b"respacing" * 10)
    await database.open()
    await Partitions(database).ensure(datetime.now(UTC))
    await Segments(database, OLD).ensure()
    spaces, holder = SpaceRepository(database), uuid4()
    await spaces.ensure_live(OLD)
    key = NewKey(
        id=holder, digest=bytes(32), role="client", name="x", owner_id=None, rate_limit=None, expires_at=None
    )
    await KeyRepository(database).create(key, actor=None)
    store, random, known = Store(database, OLD, holder), np.random.default_rng(1), sentences()
    for _ in range(count // BATCH):
        contents = [f"{each} {uuid4().hex[:6]}" for each in random.choice(known, BATCH)]
        await store.put(random.standard_normal((BATCH, 384), dtype=np.float32), contents=contents)
    rows, kept = [("share of the time", "texts/s", "hours a million")], {}
    live = OLD
    for share in SHARES:
        name = f"share-{share}"
        await spaces.begin(name, actor=None)
        work, began = ReembeddingWorker(database, OneEncoder(share)), time.perf_counter()
        while await work.step():
            pass
        pace = count / (time.perf_counter() - began)
        began = time.perf_counter()
        await spaces.switch(name, actor=None)
        kept[name] = {"texts/s": pace, "switch, s": time.perf_counter() - began}
        rows.append((f"{share}", f"{pace:.0f}", f"{1e6 / pace / 3600:.1f}"))
        await spaces.leave(live, actor=None, followed=0)
        await _removed(database, spaces, live)
        live = name
    report("respacing", rows, kept)
    await database.close()


async def _removed(database: Database, spaces: SpaceRepository, gone: str) -> None:
    while gone in await spaces.states():
        await Segments(database, gone).retire()
        while await Segments(database, gone).drop_next(grace=0) is not None:
            pass
        await ReembeddingWorker(database, OneEncoder(1.0), retry_seconds=0.1).run()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=10_000)
    arguments = parser.parse_args()
    with empty_store() as url:
        asyncio.run(measured(url, arguments.texts))


if __name__ == "__main__":
    main()
