"""The cost of masking a text on one core, and the number of finds in reviews and tweets.

Texts are the held-out set of the package. Run by `python -m benchmarks.privacy`.
"""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import psutil

from benchmarks.report import report
from registry.data.held_out import HeldOutSet
from serving.privacy.masking import merge_spans
from serving.privacy.pii import PatternTimedOut, PersonalDataFinder

ROUNDS = 3
# What patterns stumble over, as long as a text may be.
STUMBLING = ("a", "a.", "1", "1 ", "a@", "DE11", ":", "1.", "1:", "+1", "DE11 AAAA ", "(1", "212-555-")
DATA = " Call +44 20 7946 0958 or mail ada@example.org from 10.1.2.3"


def microseconds(find: PersonalDataFinder, texts: Sequence[str]) -> list[float]:
    """Return the time of each text, the median of some rounds."""
    times = np.empty((ROUNDS, len(texts)))
    for row in times:
        for index, text in enumerate(texts):
            started = time.perf_counter()
            merge_spans(find(text))
            row[index] = time.perf_counter() - started
    return [float(value) for value in np.median(times, axis=0) * 1e6]


def seconds(find: PersonalDataFinder, text: str) -> float:
    """Return the time until the text is masked or given up."""
    started = time.perf_counter()
    with suppress(PatternTimedOut):
        find(text)
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print the table."""
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    find = PersonalDataFinder()
    loading, memory = time.perf_counter() - started, (process.memory_info().rss - before) / 2**20
    texts = HeldOutSet.load_builtin().texts
    digits = [text for text in texts if any(letter.isdigit() for letter in text)]
    cases = {
        "held-out texts": texts,
        "those with a digit": digits,
        "with data appended": [text + DATA for text in texts[:500]],
        "2,000 characters, with a digit": [(" ".join(digits[at:]))[:2000] for at in range(50)],
    }
    find(DATA)
    rows: list[Sequence[object]] = [("texts", "number", "mean µs", "p99 µs")]
    found = {}
    for name, chosen in cases.items():
        times = microseconds(find, chosen)
        found[name] = times
        rows.append((name, len(chosen), f"{np.mean(times):.0f}", f"{np.percentile(times, 99):.0f}"))
    slowest = max((seconds(find, (part * 20_000)[:20_000]), part) for part in STUMBLING)
    rows.append((f"slowest of 20,000 characters: {slowest[0]:.2f} s ({slowest[1]!r})", "", "", ""))
    kinds = Counter(span.kind.value for text in texts for span in merge_spans(find(text)))
    rows.append((f"loading: {loading:.1f} s, {memory:.0f} MiB", "", "", ""))
    rows.append((f"found in the held-out texts: {dict(kinds) or 'nothing'}", "", "", ""))
    report("privacy", rows, {"microseconds": found, "loading": loading, "memory": memory, "found": kinds})


if __name__ == "__main__":
    main()
