"""Similarity search at 10,000, 100,000 and 1,000,000 texts: recall against exact, times, sizes; beside peers.

Sentences of the rated corpora are embedded once; more vectors than there are sentences lie between two real ones,
beside the line by some noise. Queries are sentences that aren't stored. Searches go through `Similarity`, in this
process and without HTTP. Peers (hnswlib, Chroma) get the same vectors and no filters, in an environment of their own.
Run by `python -m benchmarks.similarity`; with `--keep FOLDER` what was stored stays there, to be asked again.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from benchmarks.filling import CHUNK, Store, Vectors, between
from benchmarks.limit import space_folder
from benchmarks.load import sentences
from benchmarks.peers import vector_stores
from benchmarks.report import report
from db.accounts.keys import KeyRepository, NewKey
from db.connection.engine import Database
from db.embedded.server import EmbeddedPostgres
from db.embeddings.segments import ROWS, Segments
from db.predictions.partitions import Partitions
from db.schema import revisions
from db.search.similarity import SimilarityFilters, SimilarityRepository
from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import Engine
from serving.inference.engines.factory import open_encoder

T = TypeVar("T")
SPACE = "all-MiniLM-L6-v2"
KEPT = Path(".cache/bench/sentences.npy")
QUERIES = 200
K = 10
JITTER = 0.3
MEMORY = 2 << 30
# Versions by the share of texts that they predicted; the rest are another one's.
SELECTIVITY = {"half": 0.5, "twentieth": 0.05, "200th": 0.005, "2000th": 0.0005}


@dataclass(frozen=True)
class Found:
    """The results of some searches: times in ms, and how often a search found too few."""

    recall: float
    p50: float
    p95: float
    short: int


@dataclass
class Size:
    """The measurements at one number of texts; sizes in bytes."""

    texts: int
    write_ms: float = 0.0
    build_s: float = 0.0
    segments: str = ""
    index_bytes: int = 0
    heap_bytes: int = 0
    table_bytes: dict[str, int] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)
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
    """Real vectors first, then vectors between two real ones: [texts, d], in float16 steps as stored."""
    rows = known[:texts]
    if len(rows) < texts:
        rows = np.concatenate([rows, between(known, texts - len(rows), seed=3, jitter=JITTER)])
    return rows.astype(np.float16).astype(np.float32)


def nearest(queries: Vectors, rows: Vectors, fits: NDArray[np.int64] | None = None) -> list[set[int]]:
    """Return the exact places of the K nearest of all rows, or of those at some places, for each query."""
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    places = np.arange(len(rows)) if fits is None else fits
    for start in range(0, len(places), 100_000):
        part = places[start : start + 100_000]
        products = queries @ rows[part].T
        top = np.argpartition(-products, min(K, products.shape[1] - 1), axis=1)[:, :K]
        for number, columns in enumerate(top):
            best[number] += [(float(products[number, column]), int(part[column])) for column in columns]
    return [{place for _, place in sorted(found, reverse=True)[:K]} for found in best]


async def store(database: Database, rows: Vectors, versions: Sequence[str], size: Size) -> list[UUID]:
    """Rows written in order, then closed, indexed and merged until maintenance has no more to do; the texts' ids."""
    holder = uuid4()
    await KeyRepository(database).create(
        NewKey(id=holder, digest=holder.bytes * 2, role="engineer", name="fill", owner_id=None), actor=None
    )
    await Partitions(database).ensure(datetime.now(UTC))
    segments, ids = Segments(database, SPACE), list[UUID]()
    await segments.ensure()
    keeper = Store(database, SPACE, holder)
    began = time.perf_counter()
    for start in range(0, len(rows), CHUNK):
        ids += await keeper.put(rows[start : start + CHUNK], versions=versions[start : start + CHUNK])
        if len(ids) % ROWS == 0:
            await segments.roll()
    size.write_ms = (time.perf_counter() - began) * 1000 / len(rows)
    began = time.perf_counter()
    while await segments.index_next() or await segments.merge_next(memory=MEMORY):
        pass
    size.build_s = time.perf_counter() - began
    while await segments.drop_next(grace=0):
        pass
    return ids


async def measured(
    database: Database,
    queries: Vectors,
    truth: list[set[int]],
    places: dict[UUID, int],
    filters: SimilarityFilters | None = None,
) -> Found:
    """Run the queries after a few warm-up ones, and compare the results with the exact neighbours."""
    similarity = SimilarityRepository(database, space=SPACE)
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
    p50, p95 = (float(np.percentile(times, share)) for share in (50, 95))
    return Found(recall=hits / sum(map(len, truth)), p50=p50, p95=p95, short=short)


def at_size(known: Vectors, queries: Vectors, texts: int, *, peers: Sequence[str], home: Path) -> Size:
    """Measure one number of texts on a server of its own, filled if it is empty, then the peers."""
    size, rows, kept = Size(texts), made(known, texts), home / "ids.json"
    names = [*SELECTIVITY, "rest"]
    dice = np.random.default_rng(9).random(texts)
    chosen = np.searchsorted(np.cumsum(list(SELECTIVITY.values())), dice, side="right")
    versions = [names[place] for place in chosen]
    home.mkdir(mode=0o755, exist_ok=True)
    server = EmbeddedPostgres(home)
    server.start()
    try:
        url = server.create_database("bench")
        revisions.upgrade(url)
        if not kept.exists():
            ids = asyncio.run(_with(url, lambda database: store(database, rows, versions, size)))
            kept.write_text(json.dumps([size.write_ms, size.build_s, [str(each) for each in ids]]))
        size.write_ms, size.build_s, written = json.loads(kept.read_text())
        places = {UUID(each): place for place, each in enumerate(written)}
        asyncio.run(_with(url, lambda database: _measure_sizes(database, size)))
        for name in ("all", *SELECTIVITY):
            fits = None if name == "all" else np.flatnonzero(chosen == names.index(name))
            filters = None if name == "all" else SimilarityFilters(model_version=name)
            truth = nearest(queries, rows, fits)
            ask = partial(measured, queries=queries, truth=truth, places=places, filters=filters)
            size.found[name] = asyncio.run(_with(url, ask))
    finally:
        server.stop()
    truth = nearest(queries, rows)
    for name in peers:
        size.peers[name] = vector_stores.measured(name, rows, queries, truth, K)
    return size


async def _with(url: str, work: Callable[[Database], Coroutine[None, None, T]]) -> T:
    database = Database(url, installation_key=b"bench")
    await database.open()
    try:
        return await work(database)
    finally:
        await database.close()


async def _measure_sizes(database: Database, size: Size) -> None:
    tables = ("predictions", "text_inputs", "embeddings")
    async with database.hot_read() as connection:
        await connection.execute("SET statement_timeout = 0")
        for table in tables:
            await connection.execute(f"ANALYZE {table}")
            found = await connection.execute(
                "SELECT sum(pg_total_relation_size(relid))::bigint FROM "
                "(SELECT relid FROM pg_partition_tree(%(table)s) UNION SELECT %(table)s::regclass) parts",
                {"table": table},
            )
            size.table_bytes[table] = (await found.fetchall())[0][0]
        found = await connection.execute(
            "SELECT string_agg(concat_ws(' ', state, rows), ', ' ORDER BY id), "
            "sum(pg_indexes_size(format('embeddings_%s', id)::regclass))::bigint, "
            "sum(pg_relation_size(format('embeddings_%s', id)::regclass))::bigint FROM segments"
        )
        size.segments, size.index_bytes, size.heap_bytes = (await found.fetchall())[0]


def told(sizes: Sequence[Size]) -> list[Sequence[object]]:
    """Print the table: a line for each size and kind of search."""
    rows: list[Sequence[object]] = [("texts", "what", f"recall@{K}", "p50, ms", "p95, ms", f"fewer than {K}")]
    for size in sizes:
        for name, one in size.found.items():
            what = "all" if name == "all" else f"filter that {SELECTIVITY[name]:.2%} pass"
            rows.append(
                (f"{size.texts:,}", what, f"{one.recall:.4f}", f"{one.p50:.1f}", f"{one.p95:.1f}", one.short)
            )
        for name, peer in size.peers.items():
            what = f"{name}, all, effort {peer.effort}"
            rows.append(
                (f"{size.texts:,}", what, f"{peer.recall:.4f}", f"{peer.p50:.1f}", f"{peer.p95:.1f}", 0)
            )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--peers", nargs="*", default=vector_stores.NAMES, choices=vector_stores.NAMES)
    parser.add_argument(
        "--keep", type=Path, help="folder for the stores, which are made there if they are not"
    )
    arguments = parser.parse_args()
    everything = embedded_sentences()
    queries, known = everything[:QUERIES], everything[QUERIES:]
    with tempfile.TemporaryDirectory() as folder:
        homes = arguments.keep or Path(folder)
        homes.mkdir(parents=True, exist_ok=True)
        homes.chmod(0o755)
        sizes = [
            at_size(known, queries, texts, peers=arguments.peers, home=homes.resolve() / str(texts))
            for texts in arguments.sizes
        ]
    report("similarity", told(sizes), {f"{size.texts}": asdict(size) for size in sizes})
    for size in sizes:
        print(
            f"{size.texts:,}: {size.write_ms:.2f} ms a text written, built in {size.build_s:.0f} s, indexes "
            f"{size.index_bytes >> 20} MiB, vectors {size.heap_bytes >> 20} MiB, segments: {size.segments}"
        )
        print(
            "  tables with their indexes: "
            + ", ".join(f"{k} {v >> 20} MiB" for k, v in size.table_bytes.items())
        )
        for name, peer in size.peers.items():
            print(f"  {name} was built in {peer.build_s:.0f} s")


if __name__ == "__main__":
    main()
