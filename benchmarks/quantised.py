"""The loss of a search by signs: the `reach` nearest by Hamming distance, then the K nearest of them by product.

The platform doesn't quantise yet; docs/growth.md says from which size it would pay. Signs are those of pgvector's
`binary_quantize`. Distances are exact, so an index over them can only be worse.
Run by `python -m benchmarks.quantised`.
"""

import argparse

import numpy as np

from benchmarks.filling import Vectors
from benchmarks.report import report
from benchmarks.similarity import QUERIES, K, embedded_sentences, made, nearest

REACHES = (100, 400, 1_600, 6_400)


def signs(vectors: Vectors) -> np.ndarray:
    """Return one bit a dimension: [n, d / 64] in words of 64."""
    return np.packbits(vectors > 0, axis=1).view(np.uint64)


def recalls(rows: Vectors, queries: Vectors, truth: list[set[int]]) -> list[float]:
    """Return the recall for each reach."""
    bits, hits = signs(rows), np.zeros(len(REACHES))
    for query, pattern, wanted in zip(queries, signs(queries), truth, strict=True):
        distances = np.bitwise_count(bits ^ pattern).sum(axis=1)
        near = np.argpartition(distances, REACHES[-1])[: REACHES[-1]]
        near = near[np.argsort(distances[near], kind="stable")]
        products = rows[near] @ query
        for number, reach in enumerate(REACHES):
            best = near[:reach][np.argsort(-products[:reach])[:K]]
            hits[number] += len(wanted.intersection(best.tolist()))
    return list(hits / sum(map(len, truth)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    everything = embedded_sentences()
    queries, known = everything[:QUERIES], everything[QUERIES:]
    found = {}
    for texts in parser.parse_args().sizes:
        rows = made(known, texts)
        found[f"{texts:,}"] = recalls(rows, queries, nearest(queries, rows))
    head = ("texts", *(f"recall@{K}, {reach} looked at" for reach in REACHES))
    report(
        "quantised", [head, *((size, *(f"{one:.4f}" for one in each)) for size, each in found.items())], found
    )


if __name__ == "__main__":
    main()
