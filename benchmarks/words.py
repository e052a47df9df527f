"""The cost of the index of words for writers, and the time of a search by words.

A database alone: the writer stores batches of 16 real sentences, in rounds with and without the index, whose pending
list is merged as maintenance does. Run by `python -m benchmarks.words`.
"""

import argparse
import asyncio
import time
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np

from benchmarks.filling import Store, empty_store
from benchmarks.load import sentences
from benchmarks.report import middle, ratios, report
from db.accounts.keys import KeyRepository, NewKey
from db.connection.engine import Database
from db.embeddings.segments import Segments
from db.predictions.partitions import Partitions
from db.search.keywords import KeywordRepository

BATCH = 16
MERGED_EVERY = 15
SPACE = "all-MiniLM-L6-v2"
SEARCHES = ("battery life", "the movie", "the", "good or bad -film", '"at least"')


async def round_of(
    database: Database,
    batches: int,
    store: Store,
    texts: list[str],
    seed: int,
    *,
    merging: bool = True,
) -> list[float]:
    """Return the milliseconds of each batch."""
    random = np.random.default_rng(seed)
    words, found = KeywordRepository(database, space=SPACE), []
    merged = time.perf_counter()
    for _ in range(batches):
        vectors = random.standard_normal((BATCH, 384), dtype=np.float32)
        contents = [str(each) for each in random.choice(texts, BATCH)]
        began = time.perf_counter()
        await store.put(vectors, contents=contents)
        found.append((time.perf_counter() - began) * 1e3)
        if merging and time.perf_counter() - merged > MERGED_EVERY:
            await words.merge()
            merged = time.perf_counter()
    return found


async def measured(url: str, arguments: argparse.Namespace) -> None:
    """Fill, measure, print."""
    texts = sentences()
    database = Database(url, installation_key=b"words" * 10)
    await database.open()
    await Partitions(database).ensure(datetime.now(UTC))
    await Segments(database, SPACE).ensure()
    holder = uuid4()
    await KeyRepository(database).create(
        NewKey(
            id=holder,
            digest=bytes(32),
            role="client",
            name="words",
            owner_id=None,
            rate_limit=None,
            expires_at=None,
        ),
        actor=None,
    )
    store = Store(database, SPACE, holder)
    await round_of(database, arguments.fill // BATCH, store, texts, 99)
    async with database.begin() as connection:
        said = await connection.exec_driver_sql("SELECT pg_get_indexdef('ix_text_inputs_words'::regclass)")
        definition = str(said.scalar_one())
    times: dict[bool, list[list[float]]] = {True: [], False: []}
    for number in range(arguments.rounds):
        for indexed in (False, True):
            async with database.begin() as connection:
                await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                await connection.exec_driver_sql("DROP INDEX IF EXISTS ix_text_inputs_words")
                if indexed:
                    await connection.exec_driver_sql(definition)
            times[indexed].append(
                await round_of(database, arguments.batches, store, texts, number, merging=indexed)
            )
    async with database.begin() as connection:
        await connection.exec_driver_sql("ANALYZE text_inputs")
        counted = await connection.exec_driver_sql(
            "SELECT count(*), pg_relation_size('ix_text_inputs_words'), pg_relation_size('text_inputs') "
            "FROM text_inputs"
        )
        rows_stored, index, table = counted.one()
    words = KeywordRepository(database, space=SPACE)
    searches = {}
    for wanted in SEARCHES:
        took = []
        for _ in range(20):
            began = time.perf_counter()
            hits = await words.search(wanted, limit=100)
            took.append((time.perf_counter() - began) * 1e3)
        searches[wanted] = (sorted(took)[10], len(hits.text_ids), hits.complete)
    began = time.perf_counter()
    async with database.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        await connection.exec_driver_sql("REINDEX INDEX ix_text_inputs_words")
    build = time.perf_counter() - began
    await database.close()
    means = {indexed: [float(np.mean(each)) for each in rounds] for indexed, rounds in times.items()}
    p99 = {indexed: [float(np.percentile(each, 99)) for each in rounds] for indexed, rounds in times.items()}
    rows = [
        ("what", "mean of a batch, ms", "p99, ms", "÷ without"),
        ("with the index", middle(means[True]), middle(p99[True]), middle(ratios(means[True], means[False]))),
        ("without", middle(means[False]), middle(p99[False]), ""),
    ]
    rows += [
        (f"search: {wanted}", f"{median:.1f}", "", f"{most} found" + ("" if complete else ", ranked in part"))
        for wanted, (median, most, complete) in searches.items()
    ]
    sizes = f"index {index / 2**20:.0f} MiB", f"texts {table / 2**20:.0f} MiB"
    rows.append((f"{rows_stored:,} texts", *sizes, f"built in {build:.1f} s"))
    kept = {"with": times[True], "without": times[False], "searches": searches}
    report("words", rows, kept, {"with": means[True], "without": means[False]}, "ms a batch of 16")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=1_000)
    parser.add_argument("--fill", type=int, default=100_000)
    arguments = parser.parse_args()
    with empty_store() as url:
        asyncio.run(measured(url, arguments))


if __name__ == "__main__":
    main()
