"""Similarity search at 10,000, 100,000 and 1,000,000 texts: recall against exact, times, sizes; beside peers.

Sentences of the rated corpora are embedded once; more vectors than there are sentences lie between two real ones,
beside the line by some noise. Queries are sentences that aren't stored. Searches go through `Similarity`, in this
process and without HTTP. Peers (hnswlib, Chroma) get the same vectors and no filters.
Run by `python -m benchmarks.similarity`.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from benchmarks.filling import CHUNK, Store, Vectors, between
from benchmarks.limit import space_folder
from benchmarks.load import sentences
from benchmarks.peers import vector_stores
from benchmarks.report import report
from db import schema
from db.embedded import EmbeddedPostgres
from db.engine import Database
from db.keys import Keys, NewKey
from db.partitions import Partitions
from db.segments import ROWS, Segments
from db.similarity import Similarity, SimilarityFilters
from registry.bundle import Bundle
from registry.layout import Engine
from serving.encoder import open_encoder

SPACE = "all-MiniLM-L6-v2"
KEPT = Path(".cache/bench/sentences.npy")
QUERIES = 200
K = 10
JITTER = 0.3
MEMORY = 2 << 30
# Versions by the share of texts that they predicted; the rest are another one's.
SELECTIVITY = {"half": 0.5, "twentieth": 0.05, "200th": 0.005, "2000th": 0.0005}


@dataclass
class Size:
    """What was measured at one number of texts; times in ms, sizes in bytes."""

    texts: int
    write_ms: float = 0.0
    build_s: float = 0.0
    segments: str = ""
    index_bytes: int = 0
    heap_bytes: int = 0
    found: dict[str, tuple[float, float, float, int]] = field(default_factory=dict)
    peers: dict[str, vector_stores.Measured] = field(default_factory=dict)


def embedded_sentences() -> Vectors:
    """Real vectors [n, d] of the corpora's sentences, computed once and kept."""
    if not KEPT.exists():
        encoder = open_encoder(Bundle.open(space_folder()), engine=Engine.FP32, threads=2)
        texts = sentences(11)
        rows = np.zeros((len(texts), encoder.settings.dimensions), np.float32)
        for start in range(0, len(texts), CHUNK):
            for batch in encoder.run(texts[start : start + CHUNK]):
                rows[start + batch.rows] = batch.embedding
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        np.save(KEPT, rows)
    found: Vectors = np.load(KEPT)
    return found


def made(known: Vectors, texts: int) -> Vectors:
    """Real vectors as far as they go, then such as lie between them: [texts, d], in float16 steps as stored."""
    rows = known[:texts]
    if len(rows) < texts:
        rows = np.concatenate([rows, between(known, texts - len(rows), seed=3, jitter=JITTER)])
    return rows.astype(np.float16).astype(np.float32)


def nearest(queries: Vectors, rows: Vectors, fits: NDArray[np.int64] | None = None) -> list[set[int]]:
    """The places of the K nearest of all rows, or of those at some places, for each query, exactly."""
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    places = np.arange(len(rows)) if fits is None else fits
    for start in range(0, len(places), 100_000):
        part = places[start : start + 100_000]
        products = queries @ rows[part].T
        top = np.argpartition(-products, min(K, products.shape[1] - 1), axis=1)[:, :K]
        for number, columns in enumerate(top):
            best[number] += [(float(products[number, column]), int(part[column])) for column in columns]
    return [{place for _, place in sorted(found, reverse=True)[:K]} for found in best]


async def store(database: Database, rows: Vectors, versions: Sequence[str], size: Size) -> dict[UUID, int]:
    """Rows written in order, then closed, indexed and merged until housekeeping has no more to do."""
    holder = uuid4()
    await Keys(database).create(
        NewKey(id=holder, digest=holder.bytes * 2, role="engineer", name="fill", owner_id=None), actor=None
    )
    segments, places = Segments(database, SPACE), dict[UUID, int]()
    keeper = Store(database, SPACE, holder)
    began = time.perf_counter()
    for start in range(0, len(rows), CHUNK):
        ids = await keeper.put(rows[start : start + CHUNK], versions=versions[start : start + CHUNK])
        places.update(zip(ids, range(start, start + CHUNK), strict=True))
        if (start + CHUNK) % ROWS == 0:
            await segments.roll()
    size.write_ms = (time.perf_counter() - began) * 1000 / len(rows)
    began = time.perf_counter()
    while await segments.index_next() or await segments.merge_next(memory=MEMORY):
        pass
    size.build_s = time.perf_counter() - began
    while await segments.drop_next(grace=0):
        pass
    return places


async def measured(
    similarity: Similarity,
    queries: Vectors,
    truth: list[set[int]],
    places: dict[UUID, int],
    filters: SimilarityFilters | None = None,
) -> tuple[float, float, float, int]:
    """Recall@K, p50 and p95 in ms, and how often there were fewer than could be had."""
    for query in queries[:20]:
        await similarity.search(query, k=K, filters=filters)
    times, hits, short = [], 0, 0
    for query, wanted in zip(queries, truth, strict=True):
        began = time.perf_counter()
        answer = await similarity.search(query, k=K, filters=filters)
        times.append((time.perf_counter() - began) * 1000)
        got = {places[neighbour.text_id] for neighbour in answer.results}
        hits += len(got & wanted)
        short += len(got) < len(wanted)
    recall = hits / sum(len(wanted) for wanted in truth)
    return recall, float(np.percentile(times, 50)), float(np.percentile(times, 95)), short


def at_size(known: Vectors, queries: Vectors, texts: int, *, peers: Sequence[str]) -> Size:
    """A server of its own with so many texts, then the peers."""
    size, rows = Size(texts), made(known, texts)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755)
        server = EmbeddedPostgres(home)
        server.start()
        try:
            url = server.create_database("bench")
            schema.upgrade(url)
            asyncio.run(_in_database(url, size, rows, queries))
        finally:
            server.stop()
    truth = nearest(queries, rows)
    for name in peers:
        size.peers[name] = vector_stores.PEERS[name](rows, queries, truth, K)
    return size


async def _in_database(url: str, size: Size, rows: Vectors, queries: Vectors) -> None:
    names = [*SELECTIVITY, "rest"]
    dice = np.random.default_rng(9).random(len(rows))
    versions = [
        names[place] for place in np.searchsorted(np.cumsum(list(SELECTIVITY.values())), dice, side="right")
    ]
    database = Database(url, installation_key=b"bench")
    await database.open()
    try:
        await Partitions(database).ensure(datetime.now(UTC))
        await Segments(database, SPACE).ensure()
        places = await store(database, rows, versions, size)
        await _measure_sizes(database, size)
        similarity = Similarity(database, space=SPACE)
        size.found["all"] = await measured(similarity, queries, nearest(queries, rows), places)
        for name in SELECTIVITY:
            fits = np.flatnonzero(np.array(versions) == name)
            size.found[name] = await measured(
                similarity,
                queries,
                nearest(queries, rows, fits),
                places,
                SimilarityFilters(model_version=name),
            )
    finally:
        await database.close()


async def _measure_sizes(database: Database, size: Size) -> None:
    async with database.hot_read() as connection:
        await connection.execute("SET statement_timeout = 0")
        for table in ("predictions", "text_inputs", "embeddings"):
            await connection.execute(f"ANALYZE {table}")
        found = await connection.execute(
            "SELECT string_agg(concat_ws(' ', state, rows), ', ' ORDER BY id), "
            "sum(pg_indexes_size(format('embeddings_%s', id)::regclass))::bigint, "
            "sum(pg_relation_size(format('embeddings_%s', id)::regclass))::bigint FROM segments"
        )
        row = await found.fetchone()
        assert row is not None
        size.segments, size.index_bytes, size.heap_bytes = row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--peers", nargs="*", default=list(vector_stores.PEERS), choices=vector_stores.PEERS)
    arguments = parser.parse_args()
    everything = embedded_sentences()
    queries, known = everything[:QUERIES], everything[QUERIES:]
    sizes = [asyncio.run(at_size(known, queries, texts, peers=arguments.peers)) for texts in arguments.sizes]
    rows: list[Sequence[object]] = [("texts", "what", f"recall@{K}", "p50, ms", "p95, ms", f"fewer than {K}")]
    for size in sizes:
        for name, (recall, p50, p95, short) in size.found.items():
            what = "all" if name == "all" else f"filter that {SELECTIVITY[name]:.2%} pass"
            rows.append((f"{size.texts:,}", what, f"{recall:.4f}", f"{p50:.1f}", f"{p95:.1f}", short))
        for name, peer in size.peers.items():
            rows.append(
                (
                    f"{size.texts:,}",
                    f"{name}, all",
                    f"{peer.recall:.4f}",
                    f"{peer.p50:.1f}",
                    f"{peer.p95:.1f}",
                    0,
                )
            )
    found = {
        f"{size.texts}": vars(size) | {"peers": {k: vars(v) for k, v in size.peers.items()}} for size in sizes
    }
    report("similarity", rows, found)
    for size in sizes:
        print(
            f"{size.texts:,}: {size.write_ms:.2f} ms a text written, built in {size.build_s:.0f} s, indexes "
            f"{size.index_bytes >> 20} MiB, vectors {size.heap_bytes >> 20} MiB, segments: {size.segments}"
        )


if __name__ == "__main__":
    main()
