"""The error rates of the statistics of experiments, and their speed: `python -m benchmarks.trials`.

The simulations are those of the test suite, repeated 10,000 times.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from benchmarks.report import report
from registry.experiments.statistics import alpha_of_stage
from tests.support.simulations import (
    ALPHA,
    RAMP,
    RATIO_ALPHA,
    better,
    drifting,
    independent,
    null,
    sample_ratio,
    small_share,
    uniform,
)

Row = tuple[str, str, str, str]


def _rate(flags: NDArray[Any]) -> tuple[float, str]:
    """Write a share of runs with its exact 95 % interval (Clopper & Pearson, 1934)."""
    hits, runs = int(flags.sum()), len(flags)
    low = beta.ppf(0.025, hits, runs - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, runs - hits) if hits < runs else 1.0
    return hits / runs, f"{hits / runs:.2%} ({low:.2%} to {high:.2%})"


def _most(claim: str, flags: NDArray[Any], goal: float) -> Row:
    value, said = _rate(flags)
    return claim, said, f"≤ {goal:.1%}", "yes" if value <= goal else "no"


def _seen(claim: str, flags: NDArray[Any]) -> Row:
    return claim, _rate(flags)[1], "", ""


def _accuracy(runs: int) -> Iterator[Row]:
    for rolling, how in ((False, "all units at once"), (True, "units one after another")):
        found = null(runs, rolling=rolling)
        yield _most(
            f"equal arms, 5 answers a unit, correlation 0.3, {how}: wrong verdicts", found["units"], ALPHA
        )
        yield _seen("… if predictions were counted", found["predictions"])
        yield _most("… accuracy of an arm ever out of its interval", found["accuracy"], ALPHA)
    yield _most("the same at 97 % accuracy: wrong verdicts", null(runs, accuracy=0.97)["units"], ALPHA)
    yield _most("equal arms, a share of 1 %: wrong verdicts", small_share(runs), ALPHA)
    yield _most("… at 97 % accuracy", small_share(runs, accuracy=0.97), ALPHA)
    ramp = drifting(runs)
    yield _most("equal arms on a ramp, texts become easier: wrong verdicts", ramp["stages"], ALPHA)
    yield _seen("… if stages were pooled", ramp["pooled"])
    for alpha, how in (
        (ALPHA, "alpha 0.05"),
        (alpha_of_stage(ALPHA, stage=1, planned=1), "a policy's only stage"),
    ):
        found = better(runs, alpha=alpha)
        low, middle, high = np.quantile(found["feedbacks"], (0.1, 0.5, 0.9), method="higher")
        yield (
            f"80 % against 83 %, {how}: feedbacks an arm until a verdict, median (10 % to 90 %)",
            f"{middle:,.0f} ({low:,.0f} to {high:,.0f})", "≤ 4,000", "yes" if middle <= 4000 else "no",
        )  # fmt: skip
        yield _seen("… verdicts by 12,000 an arm that are right", found["right"])


def _split(runs: int) -> Iterator[Row]:
    yield _most("true split 50:50, 20,000 units: called broken", sample_ratio(runs), RATIO_ALPHA)
    ramp = sample_ratio(runs, shares=RAMP)
    yield _most("true split on a ramp of 5 shares, 20,000 units: called broken", ramp, RATIO_ALPHA)
    yield _seen("true split, 5 answers a unit, if predictions were counted", sample_ratio(runs, answers=5))
    caught = sample_ratio(runs, truth=0.48)
    value, said = _rate(caught)
    yield "48:52 instead of 50:50: caught by 20,000 units", said, "≥ 90.0%", "yes" if value >= 0.9 else "no"


def _assigned() -> Iterator[Row]:
    for claim, p in (
        ("1,000,000 units over 100 buckets are uniform: chi-square p", uniform(1_000_000)),
        ("… and over 10 × 10 of two experiments independent: chi-square p", independent(1_000_000)),
    ):
        yield claim, f"{p:.3f}", "≥ 0.001", "yes" if p >= 0.001 else "no"


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    runs = parser.parse_args().runs
    rows: list[Row] = [*_accuracy(runs), *_split(runs), *_assigned()]
    report("trials", [("what", f"found in {runs:,} runs", "goal", "met"), *rows], {"runs": runs})


if __name__ == "__main__":
    main()
