"""Simulated experiments with fixed seeds: how often their statistics are wrong, and how soon they are right.

The experimenter looks after every feedback and acts at the first verdict. `python -m benchmarks.trials` prints a table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, chi2_contingency

from registry.experiments.assignment import bucket
from registry.experiments.statistics import (
    DIFFERENCE_SCALE,
    alpha_of_stage,
    confidence_radius,
    log_bayes_factor,
    log_rate_evidence,
    squared_error,
)

Series = NDArray[np.float64]
Flags = NDArray[np.bool_]

ALPHA = 0.05
RATIO_ALPHA = 0.001
RAMP = (0.01, 0.05, 0.10, 0.25, 0.50)
CHUNK = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """The data of an arm at each look: running counts, [runs, looks]."""

    units: Series
    total: Series
    squares: Series

    @property
    def mean(self) -> Series:
        return self.total / np.maximum(self.units, 1)

    @property
    def sums(self) -> tuple[Series, Series, Series]:
        return np.maximum(self.units, 1), self.total, self.squares


def sides(champion: Arm, challenger: Arm, *, alpha: float = ALPHA) -> tuple[Flags, Flags]:
    """Return whether the challenger is called better, and whether worse, at each look [runs, looks]."""
    known = (champion.units > 0) & (challenger.units > 0)
    half = confidence_radius(
        squared_error(champion.sums, challenger.sums), alpha=alpha, scale=DIFFERENCE_SCALE
    )
    gap = challenger.mean - champion.mean
    return known & (gap > half), known & (gap < -half)


def wrong(champion: Arm, challenger: Arm, *, alpha: float = ALPHA) -> Flags:
    """Return whether equal arms are ever called different [runs]."""
    better, worse = sides(champion, challenger, alpha=alpha)
    return (better | worse).any(axis=1)


def feedback(
    rng: np.random.Generator,
    runs: int,
    *,
    units: int = 4000,
    answers: int = 5,
    accuracy: float = 0.8,
    correlation: float = 0.3,
    rolling: bool = False,
) -> tuple[tuple[Arm, Arm], tuple[Arm, Arm]]:
    """Return both arms after every feedback, counted by units and (the mistake) by predictions.

    Units fall to equal arms by chance. A unit's answers are right with a chance of its own, from a beta
    distribution whose intra-unit correlation is given. All feedback comes in random order, or, `rolling`, units
    come one after another and theirs is spread over the time in which 200 more come.
    """
    weight = 1 / correlation - 1
    chance = rng.beta(accuracy * weight, (1 - accuracy) * weight, (runs, units, 1))
    right = (rng.random((runs, units, answers)) < chance).astype(float)
    share = right.cumsum(axis=2) / np.arange(1, answers + 1)
    if rolling:
        when = np.arange(units)[:, None] + np.sort(rng.exponential(200, (runs, units, answers)), axis=2)
    else:
        when = np.sort(rng.random((runs, units, answers)), axis=2)
    order = when.reshape(runs, -1).argsort(axis=1)
    first = np.zeros_like(right)
    first[:, :, 0] = 1
    arm = np.broadcast_to(rng.random((runs, units, 1)) < 0.5, right.shape)

    def counts_of(change: Series, challenger: bool) -> Series:
        mine = np.where(arm == challenger, change, 0.0).reshape(runs, -1)
        return np.take_along_axis(mine, order, axis=1).cumsum(axis=1)

    def counted(units: Series, total: Series, squares: Series) -> tuple[Arm, Arm]:
        one, other = (
            Arm(
                units=counts_of(units, which),
                total=counts_of(total, which),
                squares=counts_of(squares, which),
            )
            for which in (False, True)
        )
        return one, other

    by_unit = counted(first, np.diff(share, axis=2, prepend=0.0), np.diff(share**2, axis=2, prepend=0.0))
    return by_unit, counted(np.ones_like(right), right, right)


def stages(
    rng: np.random.Generator,
    runs: int,
    shares: Sequence[float],
    challengers: Sequence[int],
    accuracies: Sequence[float],
) -> list[tuple[Arm, Arm]]:
    """Return both arms, equally accurate, after each of the challenger's feedbacks, for each stage alone.

    Units have one answer each, and fall to the challenger by the stage's share.
    """
    arms = []
    for share, count, accuracy in zip(shares, challengers, accuracies, strict=True):
        between = rng.geometric(share, (runs, count)) - 1
        right = (rng.random((runs, count)) < accuracy).cumsum(axis=1).astype(float)
        champion_right = rng.binomial(between, accuracy).cumsum(axis=1).astype(float)
        number = np.broadcast_to(np.arange(1.0, count + 1), (runs, count))
        arms.append(
            (
                Arm(units=between.cumsum(axis=1).astype(float), total=champion_right, squares=champion_right),
                Arm(units=number, total=right, squares=right),
            )
        )
    return arms


def pooled(parts: Sequence[Arm]) -> Arm:
    """Return one arm over all stages, as if the share had never changed."""

    def joined(name: str) -> Series:
        series = [getattr(part, name) for part in parts]
        before = np.cumsum([0.0 * series[0][:, -1], *(one[:, -1] for one in series[:-1])], axis=0)
        return np.concatenate(
            [one + start[:, None] for one, start in zip(series, before, strict=True)], axis=1
        )

    return Arm(units=joined("units"), total=joined("total"), squares=joined("squares"))


def null(runs: int, *, rolling: bool = False, accuracy: float = 0.8, seed: int = 1) -> dict[str, Flags]:
    """Simulate equal arms, five answers a unit: wrong verdicts by units and by predictions, and missed intervals."""

    def some(rng: np.random.Generator, count: int) -> dict[str, Flags]:
        by_unit, by_prediction = feedback(rng, count, accuracy=accuracy, rolling=rolling)
        champion = by_unit[0]
        against = log_rate_evidence(champion.total, champion.units - champion.total, accuracy)
        return {
            "units": wrong(*by_unit),
            "predictions": wrong(*by_prediction),
            "accuracy": (against >= -np.log(ALPHA)).any(axis=1),
        }

    return _chunks(some, runs, seed)


def small_share(runs: int, *, share: float = 0.01, accuracy: float = 0.8, seed: int = 2) -> Flags:
    """Simulate equal arms, one small: wrong verdicts until the challenger has 4,000 units."""
    return _chunks(
        lambda rng, count: {"wrong": wrong(*stages(rng, count, [share], [4000], [accuracy])[0])}, runs, seed
    )["wrong"]


def drifting(runs: int, *, seed: int = 3) -> dict[str, Flags]:
    """Simulate equal arms on a ramp while texts get easier: wrong verdicts by the present stage alone, and by all."""

    def some(rng: np.random.Generator, count: int) -> dict[str, Flags]:
        parts = stages(rng, count, RAMP, [500] * 4 + [4000], np.linspace(0.75, 0.85, len(RAMP)).tolist())
        each = [
            wrong(*part, alpha=alpha_of_stage(ALPHA, stage=number, planned=len(RAMP)))
            for number, part in enumerate(parts, start=1)
        ]
        together = wrong(pooled([one for one, _ in parts]), pooled([other for _, other in parts]))
        return {"stages": np.any(each, axis=0), "pooled": together}

    return _chunks(some, runs, seed)


def better(
    runs: int, *, alpha: float = ALPHA, least: int = 100, horizon: int = 12_000, seed: int = 4
) -> dict[str, Series]:
    """Simulate 80 % against 83 %, independent units, equal shares: feedbacks an arm until a verdict, and its truth."""

    def some(rng: np.random.Generator, count: int) -> dict[str, Series]:
        arm = rng.random((count, 2 * horizon)) < 0.5
        right = rng.random((count, 2 * horizon)) < np.where(arm, 0.83, 0.80)
        arms = []
        for mine in (~arm, arm):
            total = (mine & right).cumsum(axis=1).astype(float)
            arms.append(Arm(units=mine.cumsum(axis=1).astype(float), total=total, squares=total))
        above, below = sides(arms[0], arms[1], alpha=alpha)
        called = (above | below) & (np.minimum(arms[0].units, arms[1].units) >= least)
        first = called.argmax(axis=1)
        decided = called.any(axis=1)
        return {
            "feedbacks": np.where(decided, (first + 1) / 2, np.inf),
            "right": (decided & above[np.arange(count), first]).astype(float),
        }

    return _chunks(some, runs, seed)


def sample_ratio(
    runs: int,
    *,
    truth: float | None = None,
    shares: Sequence[float] = (0.5,),
    units: int = 20_000,
    answers: int = 1,
    seed: int = 5,
) -> Flags:
    """Return whether the split is ever called broken, for even units over stages of these shares.

    There is a look after each unit. With `answers`, every unit counts that many times, as in a check on predictions.
    """

    def some(rng: np.random.Generator, count: int) -> dict[str, Flags]:
        evidence = np.zeros((count, 1))
        caught = np.zeros(count, dtype=np.bool_)
        for share in shares:
            each = units // len(shares) // answers
            arm = np.repeat(rng.random((count, each)) < (share if truth is None else truth), answers, axis=1)
            if answers > 1:
                arm = rng.permuted(arm, axis=1)
            mine = arm.cumsum(axis=1)
            running = evidence + log_bayes_factor(np.arange(1, mine.shape[1] + 1) - mine, mine, share)
            caught |= (running >= -np.log(RATIO_ALPHA)).any(axis=1)
            evidence = running[:, -1:]
        return {"caught": caught}

    return _chunks(some, runs, seed)["caught"]


def uniform(units: int, *, salt: str = "one", bins: int = 100) -> float:
    """Return the chi-square p-value that units spread evenly over bins."""
    counts = np.bincount([int(bucket(salt, f"unit {n}") * bins) for n in range(units)], minlength=bins)
    expected = units / bins
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), bins - 1))


def independent(units: int, *, salts: tuple[str, str] = ("one", "other"), bins: int = 10) -> float:
    """Return the chi-square p-value that units' places in two experiments are independent."""
    one, other = (np.array([int(bucket(salt, f"unit {n}") * bins) for n in range(units)]) for salt in salts)
    table = np.bincount(one * bins + other, minlength=bins**2).reshape(bins, bins)
    return float(chi2_contingency(table).pvalue)


def _chunks(
    some: Callable[[np.random.Generator, int], dict[str, NDArray[Any]]], runs: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Return the results of all runs, computed in chunks; the first runs don't depend on the number of runs."""
    parts = []
    for number, start in enumerate(range(0, runs, CHUNK)):
        count = min(CHUNK, runs - start)
        chunk = some(np.random.default_rng([seed, number]), CHUNK)
        parts.append({name: values[:count] for name, values in chunk.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
