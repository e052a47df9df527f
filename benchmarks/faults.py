"""Inject every fault into platforms of its own, and report: `python -m benchmarks.faults`.

Writes the table of docs/faults.md; `--only` tries some faults and replaces their lines. Exits with 1 if a goal is
missed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.report import FOLDER, report
from tests.support.faults.catalogue import FAULTS
from tests.support.faults.document import GOAL, PAGE, rows, write
from tests.support.faults.fault import Fault, Missing
from tests.support.faults.trial import Plan, Result, undergo


def main() -> int:
    """Try, print and write."""
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=5, help="good answers to see before a fault is over")
    parser.add_argument("--clients", type=int, default=6)
    arguments = parser.parse_args()
    plan = Plan(clients=arguments.clients, steady=arguments.seconds)
    chosen = [fault for fault in FAULTS if fault.name in (arguments.only or names)]
    kept = [] if arguments.only is None else before(FOLDER / "faults.json")
    missing: dict[str, str] = {}
    missed = False
    for fault, outcome in tried(chosen, plan):
        kept = [result for result in kept if result.name != fault.name]
        if isinstance(outcome, Missing):
            missing[fault.name] = str(outcome)
            print(f"{fault.name}: not tried, needs {outcome}", flush=True)
            continue
        kept = sorted([*kept, outcome], key=lambda result: names.index(result.name))
        missed |= bool(outcome.misses)
        print(*outcome.examples, sep="\n")
        # After each, so that a run that is broken off keeps what it found.
        report("faults", rows([outcome]), {"goal": GOAL, "results": [asdict(result) for result in kept]})
        write(PAGE, machine(), FAULTS, kept, missing)
    return int(missed)


def before(file: Path) -> list[Result]:
    """Read the results of earlier runs on this machine."""
    if not file.exists():
        return []
    found = json.loads(file.read_text())
    return [Result(**each) for each in found["results"]] if found["machine"] == machine() else []


def tried(faults: Sequence[Fault], plan: Plan) -> Iterator[tuple[Fault, Result | Missing]]:
    """Each fault with what came of it; a platform serves all faults of its ground, one after another."""
    for ground, group in groupby(faults, key=lambda fault: fault.ground):
        with ExitStack() as stack:
            try:
                platform = stack.enter_context(ground())
            except Missing as lack:
                yield from ((fault, lack) for fault in group)
                continue
            for fault in group:
                try:
                    yield fault, undergo(fault, platform, plan)
                except Missing as lack:
                    yield fault, lack


if __name__ == "__main__":
    sys.exit(main())
