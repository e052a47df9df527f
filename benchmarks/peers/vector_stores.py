"""Vector stores that could be used instead, in this process: hnswlib alone, and Chroma with its files.

Each runs with the smallest search effort of a few that reaches the recall of 0.98, else with the largest. They run in
an environment of their own (`make .cache/vectors/.installed`).
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

PYTHON = Path(".cache/vectors/bin/python")
M, EF_CONSTRUCTION = 16, 64
EFFORTS = (50, 100, 200, 400, 800)
ENOUGH = 0.98
_CHUNK = 5_000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times in ms, the build in seconds."""

    build_s: float
    effort: int
    recall: float
    p50: float
    p95: float


def hnswlib(rows: Vectors, queries: Vectors, truth: Sequence[set[int]], k: int) -> Measured:
    """Measure the library alone, in memory: float32 vectors and their numbers."""
    import hnswlib as library

    began = time.perf_counter()
    index = library.Index(space="ip", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), M=M, ef_construction=EF_CONSTRUCTION)
    index.set_num_threads(2)
    index.add_items(rows)
    build = time.perf_counter() - began
    index.set_num_threads(1)

    def ask(query: Vectors) -> set[int]:
        found, _ = index.knn_query(query, k=k)
        return {int(place) for place in found[0]}

    return _asked(ask, index.set_ef, queries, truth, build)


def chroma(rows: Vectors, queries: Vectors, truth: Sequence[set[int]], k: int) -> Measured:
    """Its persistent client, in this process."""
    import chromadb

    with tempfile.TemporaryDirectory() as folder:
        client = chromadb.PersistentClient(path=folder)
        began = time.perf_counter()
        collection = client.create_collection(
            "texts",
            configuration={
                "hnsw": {
                    "space": "ip",
                    "max_neighbors": M,
                    "ef_construction": EF_CONSTRUCTION,
                    "num_threads": 2,
                }
            },
        )
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            collection.add(
                ids=[str(place) for place in range(start, start + len(part))],
                embeddings=part,
                documents=[f"stored text {place}" for place in range(start, start + len(part))],
            )
        build = time.perf_counter() - began

        def look(effort: int) -> None:
            collection.modify(configuration={"hnsw": {"ef_search": effort}})

        def ask(query: Vectors) -> set[int]:
            return {int(name) for name in collection.query(query_embeddings=[query], n_results=k)["ids"][0]}

        return _asked(ask, look, queries, truth, build)


def _asked(
    ask: Callable[[Vectors], set[int]],
    look: Callable[[int], None],
    queries: Vectors,
    truth: Sequence[set[int]],
    build: float,
) -> Measured:
    for effort in EFFORTS:
        look(effort)
        for query in queries[:20]:
            ask(query)
        times, hits = [], 0
        for query, wanted in zip(queries, truth, strict=True):
            began = time.perf_counter()
            found = ask(query)
            times.append((time.perf_counter() - began) * 1000)
            hits += len(found & wanted)
        recall = hits / sum(len(wanted) for wanted in truth)
        if recall >= ENOUGH:
            break
    p50, p95 = (float(np.percentile(times, share)) for share in (50, 95))
    return Measured(build_s=build, effort=effort, recall=recall, p50=p50, p95=p95)


_PEERS: dict[str, Callable[[Vectors, Vectors, Sequence[set[int]], int], Measured]] = {
    "hnswlib": hnswlib,
    "Chroma": chroma,
}
NAMES = list(_PEERS)


def measured(name: str, rows: Vectors, queries: Vectors, truth: Sequence[set[int]], k: int) -> Measured:
    """Run a peer in its environment: the `k` nearest of rows [n, d] for queries [q, d], compared with the exact ones.

    Raises:
        FileNotFoundError: the environment hasn't been made.
        CalledProcessError: the peer failed; its messages are on the screen.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "asked.npz", rows=rows, queries=queries, truth=[sorted(each) for each in truth]
        )
        command = [str(PYTHON), "-m", __name__, name, folder, str(k)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main(name: str, folder: str, k: str) -> None:
    """Measure one and print it as JSON."""
    asked = np.load(Path(folder) / "asked.npz")
    truth = [set(map(int, each)) for each in asked["truth"]]
    print(json.dumps(asdict(_PEERS[name](asked["rows"], asked["queries"], truth, int(k)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
