"""What the language of each text costs: texts a second of a replica, with it and without it; and its mistakes.

It runs in this process, because only the replica's work counts. Run by `python -m benchmarks.languages`.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from unittest.mock import patch

from benchmarks.limit import encoder_folder, head_folder
from benchmarks.load import sentences
from benchmarks.report import middle, ratios, report
from benchmarks.three_heads import per_second, version
from registry.bundles.bundle import Bundle
from registry.data.held_out import HeldOutSet
from serving.inference.engines.factory import open_encoder
from serving.inference.languages import TextLanguage, identify_language, load_classifier
from serving.inference.replica import Replica
from serving.inference.replica_client import ReplicaClient

_WITH, _WITHOUT = "with", "without"


async def measure(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Texts a second with and without the language, one figure a round."""
    encoder = open_encoder(Bundle.open(encoder_folder()), threads=2)
    encoder.warm_up(30)
    encoders = ReplicaClient(Replica(encoder, lambda _: head_folder()))
    texts, way = sentences(3), [[version(0)]]
    found: dict[str, list[float]] = {_WITH: [], _WITHOUT: []}
    await per_second(encoders, way, 2, texts)
    for _ in range(rounds):
        found[_WITH].append(await per_second(encoders, way, seconds, texts))
        with patch("serving.inference.replica.identify_language", lambda *_: TextLanguage()):
            found[_WITHOUT].append(await per_second(encoders, way, seconds, texts))
    return found


def alone() -> tuple[float, float]:
    """Return the microseconds of one held-out text, and the share of these English texts that count as foreign."""
    texts = [example.text for example in HeldOutSet.load_builtin().examples]
    load_classifier()
    started = time.perf_counter()
    results = [identify_language(text, ["en"]) for text in texts]
    elapsed = time.perf_counter() - started
    return elapsed / len(texts) * 1e6, sum(each.foreign for each in results) / len(texts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6)
    arguments = parser.parse_args()
    microseconds, foreign = alone()
    found = asyncio.run(measure(arguments.rounds, arguments.seconds))
    rows: list[Sequence[object]] = [("language", "texts/s", "÷ without")]
    rows.append((_WITH, middle(found[_WITH]), middle(ratios(found[_WITH], found[_WITHOUT]))))
    rows.append((_WITHOUT, middle(found[_WITHOUT]), ""))
    rows.append(("a text alone, µs", f"{microseconds:.0f}", ""))
    rows.append(("held-out texts taken for foreign", f"{foreign:.2%}", ""))
    report("languages", rows, {"results": found}, found, "texts per second")


if __name__ == "__main__":
    main()
