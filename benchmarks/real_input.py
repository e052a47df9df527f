"""Real input, end to end: rated product reviews through the API of a running platform.

Scores every snippet with the lexicon and the champion, gives feedback from the human ratings, and prints accuracy and
macro-F1 on the held-out snippets alone, then the nearest neighbours of three queries.
Run by `python -m benchmarks.real_input`.
"""

import argparse
from collections.abc import Sequence
from itertools import islice
from typing import Any

from sklearn.metrics import accuracy_score, f1_score

from benchmarks.load import CACHE
from registry.bundles.bundle import LABELS
from registry.data import corpora
from registry.data.corpora import Example, Part
from serving.cli.client import Client
from serving.cli.output import connect
from tests.support.tables import table

SOURCE = "rated-products"
BATCH = 500
VERSIONS = ("1", "3")
QUERIES = (
    "the battery dies far too quickly",
    "great sound for the price",
    "the software was confusing to install",
)


def score(client: Client, examples: Sequence[Example], version: str) -> list[dict[str, Any]]:
    """Predictions of one version, in order."""
    found: list[dict[str, Any]] = []
    rest = iter(examples)
    while batch := [example.text for example in islice(rest, BATCH)]:
        answer = client.post("/v1/predict/batch", texts=batch, version=version)
        found.extend(answer["predictions"])
    return found


def judge(client: Client, examples: Sequence[Example], predictions: Sequence[dict[str, Any]]) -> None:
    """Give feedback on each prediction by the human ratings."""
    for example, prediction in zip(examples, predictions, strict=True):
        truth = LABELS[example.label]
        right = prediction["sentiment"] == truth
        client.post(
            "/v1/feedback",
            prediction_id=prediction["id"],
            is_correct=right,
            label=None if right else truth,
        )


def measure(examples: Sequence[Example], predictions: Sequence[dict[str, Any]]) -> tuple[int, float, float]:
    """How many held-out snippets there are, and accuracy and macro-F1 on them."""
    held_out = [
        (LABELS[example.label], prediction["sentiment"])
        for example, prediction in zip(examples, predictions, strict=True)
        if example.part is Part.HELD_OUT
    ]
    truth, said = zip(*held_out, strict=True)
    return len(truth), float(accuracy_score(truth, said)), float(f1_score(truth, said, average="macro"))


def main() -> None:
    """Run everything against the platform that the command line talks to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="default: VALENCE_URL, or this machine's")
    parser.add_argument("--key", help="default: VALENCE_API_KEY, or the home's admin.key")
    arguments = parser.parse_args()
    examples = [example for example in corpora.load(CACHE) if example.source == SOURCE]
    with connect(arguments.url, arguments.key) as client:
        rows: list[Sequence[object]] = [("version", "held-out snippets", "accuracy", "macro-F1")]
        for version in VERSIONS:
            predictions = score(client, examples, version)
            judge(client, examples, predictions)
            count, accuracy, macro_f1 = measure(examples, predictions)
            rows.append((version, count, f"{accuracy:.3f}", f"{macro_f1:.3f}"))
        print(f"{len(examples)} product snippets scored and judged with each version\n")
        print("\n".join(table(rows)))
        for query in QUERIES:
            answer = client.post("/v1/similar", text=query, k=5)
            print(f"\nnearest to {query!r}:")
            for result in answer["results"]:
                print(f"  {result['similarity']:.3f}  {result['text'][:100]}")


if __name__ == "__main__":
    main()
