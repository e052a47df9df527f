"""Use a platform for an hour, and report what failed and what grew: `python -m benchmarks.soak`.

Writes the tables of docs/soak.md. Exits with 1 if anything failed or grew.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

from benchmarks.machine import machine
from benchmarks.report import report
from benchmarks.soak.growth import Growth, growth
from benchmarks.soak.samples import (
    CONNECTIONS,
    DATA,
    FILES,
    LOG,
    MEMORY,
    SERIES,
    SHARED,
    THREADS,
    TOTAL,
    sample,
)
from benchmarks.soak.users import Users
from tests.support.live import LivePlatform, live_platform
from tests.support.tables import table, write_between

PAGE = Path("docs/soak.md")
BEGIN, END = "<!-- written by `make soak`: begin -->", "<!-- end -->"

SHARE = 0.05
ALLOWANCE = {MEMORY: 16.0, FILES: 5.0, THREADS: 5.0, CONNECTIONS: 2.0, SERIES: 20.0}
"""What may grow in an hour: a twentieth, or so much."""

Samples = list[tuple[float, dict[str, dict[str, float]]]]


def main() -> int:
    """Use, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="of use, the warm-up included")
    parser.add_argument("--warm-up", type=float, default=15, help="minutes that no slope counts")
    parser.add_argument("--every", type=float, default=20, help="seconds from one sample to the next")
    arguments = parser.parse_args()
    if (arguments.minutes - arguments.warm_up) * 60 < 2 * arguments.every:
        parser.error("--minutes must leave time for two samples (--every) after --warm-up: a slope needs two")
    with live_platform() as platform:
        users, samples = watched(platform, arguments.minutes * 60, arguments.every)
    steady = [each for each in samples if each[0] >= arguments.warm_up * 60]
    grown = growths(steady)
    answered, held = answers(users), held_rows(grown)
    failed = [
        *users.faults,
        *(f"{measure} of {group} grows" for (measure, group), each in grown.items() if grows(measure, each)),
    ]
    report("soak", answered, {"faults": failed, "samples": samples})
    print(*table(held), sep="\n")
    print(*(failed[:20] or ["nothing failed and nothing grew"]), sep="\n")
    summary = (
        f"{machine()}, {datetime.now(UTC):%d %B %Y}: {arguments.minutes:.0f} minutes, of which "
        f"{arguments.warm_up:.0f} of warm-up; {users.predictions:,} predictions; {len(users.faults)} faults."
    )
    write_between(PAGE, BEGIN, END, [summary, "", *table(answered), "", *table(held)])
    return int(bool(failed))


def watched(platform: LivePlatform, seconds: float, every: float) -> tuple[Users, Samples]:
    """Use the platform for so long; return its users, and the samples with their seconds since the start."""
    users, samples, over = Users(platform), Samples(), Event()
    started = time.monotonic()

    def watch() -> None:
        while not over.wait(every):
            samples.append((time.monotonic() - started, sample(platform)))

    watcher = Thread(target=watch, name="samples")
    watcher.start()
    try:
        asyncio.run(users.use(seconds))
    finally:
        over.set()
        watcher.join()
    return users, samples


def growths(samples: Samples) -> dict[tuple[str, str], Growth]:
    """Return the growth of each measure and group that every sample has."""
    times = [moment for moment, _ in samples]
    everywhere = set.intersection(
        *({(measure, group) for measure, groups in each.items() for group in groups} for _, each in samples)
    )
    return {
        (measure, group): growth(times, [each[measure][group] for _, each in samples])
        for measure, group in sorted(everywhere)
    }


def grows(measure: str, found: Growth) -> bool:
    """Whether the measure has a bound and certainly passes it."""
    return measure in ALLOWANCE and not found.is_flat(share=SHARE, allowance=ALLOWANCE[measure])


def answers(users: Users) -> Sequence[Sequence[object]]:
    """Return the table of answers by kind."""
    return [
        ("kind", "requests", "statuses"),
        *(
            (kind, counts.total(), ", ".join(f"{count:,} × {said}" for said, count in counts.most_common()))
            for kind, counts in sorted(users.statuses.items())
        ),
    ]


def held_rows(grown: dict[tuple[str, str], Growth]) -> Sequence[Sequence[object]]:
    """Return the table of what the platform held after the warm-up; each measure in all, memory by group, too."""
    order = (MEMORY, SHARED, FILES, THREADS, CONNECTIONS, SERIES, LOG, DATA)
    chosen = [
        key
        for key in sorted(grown, key=lambda key: (order.index(key[0]), key[1] != TOTAL, key[1]))
        if key[0] in (MEMORY, SHARED, LOG, DATA) or key[1] == TOTAL
    ]
    return [
        ("measure", "of", "median", "greatest", "an hour (95 %)", "flat"),
        *(_row(measure, group, grown[measure, group]) for measure, group in chosen),
    ]


def _row(measure: str, group: str, found: Growth) -> Sequence[object]:
    verdict = ("no" if grows(measure, found) else "yes") if measure in ALLOWANCE else ""
    slope = f"{found.an_hour:+.1f} ({found.low:+.1f} to {found.high:+.1f})"
    return measure, group, f"{found.median:.0f}", f"{found.greatest:.0f}", slope, verdict


if __name__ == "__main__":
    sys.exit(main())
