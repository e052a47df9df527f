"""The statistics of an experiment: counts in, numbers out. Never reads a table, decides or remembers.

All of it is always-valid: it may be looked at after every feedback and acted on at any of these looks.
It counts units, not predictions, because the answers of one unit depend on each other.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

from registry.evaluation.metrics import Interval

Numbers = NDArray[np.float64] | NDArray[np.int64] | float
Sums = tuple[Numbers, Numbers, Numbers]

# The standard deviation of the mixture, in accuracy: differences of about this size are found soonest.
DIFFERENCE_SCALE = 0.03
# How many units the belief in a split other than the planned one is worth.
RATIO_CONCENTRATION = 1000.0
LEAST_SHARE = 1e-9
# The part of alpha that is kept for stages that no plan foresaw.
RESERVE = 0.2

# Where a likelihood is still finite, however little of a unit is a miss.
_TINY, _NEARLY_ONE = 1e-300, 1 - 2**-53


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmFeedback:
    """What feedback says of an arm: a unit counts once, as the share of its judged answers that were right.

    `units` are distinct units with feedback; `total` and `squares` the sums of their shares and of the
    squares of their shares.
    """

    units: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def sums(self) -> Sums:
        return self.units, self.total, self.squares

    @classmethod
    def from_shares(cls, shares: Iterable[float]) -> Self:
        """The sums over units, of each the share of its judged answers that were right."""
        kept = list(shares)
        return cls(units=len(kept), total=math.fsum(kept), squares=math.fsum(share**2 for share in kept))


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How units fell to the arms while the challenger's share stood still.

    `champion` and `challenger` count the distinct units that the experiment met for the first time, each once.
    """

    share: float
    champion: int
    challenger: int


def squared_error(champion: Sums, challenger: Sums) -> Numbers:
    """The variance of the difference of both arms' means, elementwise; each arm has units (≥ 1), total, squares.

    Two units are added to the sample variance of an arm, one wholly right and one wholly wrong (Laplace's
    rule; the most that units can differ), so that no variance is zero; what was added vanishes as 1/units.
    And no arm counts as less varied than both are together, as in a score test: 100 right answers in a row, of
    a small arm beside a large one that is right in 97 of 100, are luck rather than certainty.
    """
    spreads = [_spread(*champion), _spread(*challenger)]
    sizes = [champion[0], challenger[0]]
    together = (sizes[0] * spreads[0] + sizes[1] * spreads[1]) / (sizes[0] + sizes[1])
    found: Numbers = sum(
        np.maximum(spread, together) / size for spread, size in zip(spreads, sizes, strict=True)
    )
    return found


def radius(variance: Numbers, *, alpha: float, scale: float) -> Numbers:
    """Half the width of an asymptotic normal-mixture confidence sequence at level 1 - alpha, elementwise.

    `variance` is the squared standard error of the estimate at this look. With information I = 1/variance,
    the score I·estimate is nearly a Brownian motion in I, whatever the arms' sizes are; mixing its likelihood
    ratios over effects from N(0, scale²) gives a martingale that exceeds 1/alpha with probability at most
    alpha (Robbins; Waudby-Smith et al., arXiv 2103.06476, whose t·ρ² is scale²/variance).
    `scale` is on the effect's scale; on that of z, it would be another mixture at every look and no
    martingale.
    """
    precision = scale**2 / variance
    found: Numbers = np.sqrt(variance * (1 + 1 / precision) * (np.log1p(precision) - 2 * math.log(alpha)))
    return found


def accuracy(arm: ArmFeedback, *, level: float) -> Interval | None:
    """The accuracy of one arm with an always-valid interval within [0, 1]; None without feedback."""
    return rate(arm.total, arm.units, alpha=1 - level)


def difference(champion: ArmFeedback, challenger: ArmFeedback, *, alpha: float) -> Interval | None:
    """The challenger's accuracy minus the champion's, always-valid, within [-1, 1]; None if an arm has no feedback.

    At all looks together, the interval misses the true difference on either side with probability at most
    about alpha. Both arms' feedback must be on answers given at one share: what is asked changes with time,
    and arms that were weighted differently over time differ by that alone.
    """
    if not champion.units or not challenger.units:
        return None
    value = challenger.total / challenger.units - champion.total / champion.units
    variance = squared_error(champion.sums, challenger.sums)
    half = float(radius(variance, alpha=alpha, scale=DIFFERENCE_SCALE))
    return Interval(value=value, low=max(-1.0, value - half), high=min(1.0, value + half))


def log_bayes_factor(champion: Numbers, challenger: Numbers, share: float) -> Numbers:
    """The logarithm of the evidence that units fall to the challenger otherwise than by `share`, elementwise.

    The Dirichlet-multinomial test (Lindon & Malek, arXiv 2011.03567) for two arms: a beta belief around the
    share, worth `RATIO_CONCENTRATION` units, against the share itself. Its exponential is a martingale of
    mean 1 under the true share, which lies in (0, 1).
    """
    a, b = RATIO_CONCENTRATION * share, RATIO_CONCENTRATION * (1 - share)
    believed = betaln(a + challenger, b + champion) - betaln(a, b)
    found: Numbers = believed - challenger * math.log(share) - champion * math.log1p(-share)
    return found


def sample_ratio(splits: Sequence[Split]) -> float:
    """A sequential p-value that the units fell to the arms by their shares: min(1, 1 / Bayes factor).

    The factors of splits multiply, which leaves a martingale. A share within a billionth of 0 or 1 splits
    nothing and is left out.
    With probability at most alpha, the least p-value over all looks is ever alpha or less. So whoever acts at
    the first look at which it is needs no memory, and whoever shows it may show the least so far.
    """
    evidence = sum(
        float(log_bayes_factor(split.champion, split.challenger, split.share))
        for split in splits
        if LEAST_SHARE < split.share < 1 - LEAST_SHARE
    )
    return math.exp(min(0.0, -evidence))


def log_rate_evidence(hits: Numbers, misses: Numbers, chance: float) -> Numbers:
    """The logarithm of the evidence that something happens otherwise than with `chance`, elementwise.

    A mixture over Beta(1/2, 1/2) against the chance, in (0, 1) (Robbins, 1970): its exponential is a martingale of
    mean 1 for independent events, however rare. Shares in [0, 1] may stand for events: by convexity they
    make a supermartingale, so that the bound holds still.
    """
    mixture = betaln(hits + 0.5, misses + 0.5) - betaln(0.5, 0.5)
    found: Numbers = mixture - xlogy(hits, chance) - xlog1py(misses, -chance)
    return found


def rate(hits: float, trials: int, *, alpha: float) -> Interval | None:
    """How often something happens, with an always-valid interval at level 1 - alpha; None without trials.

    The interval is of the chances against which `log_rate_evidence` is less than 1/alpha. It is no
    approximation, and wider than need be where hits are shares of several answers.
    """
    if not trials:
        return None
    value = min(1.0, hits / trials)
    return Interval(
        value=value,
        low=_least_chance(hits, trials - hits, value, alpha),
        high=1 - _least_chance(trials - hits, hits, 1 - value, alpha),
    )


def increase(champion: tuple[int, int], challenger: tuple[int, int], *, alpha: float) -> Interval | None:
    """The challenger's rate minus the champion's, each given as (events, trials); always-valid, by Bonferroni."""
    before, after = (rate(*counts, alpha=alpha / 2) for counts in (champion, challenger))
    if before is None or after is None:
        return None
    return Interval(
        value=after.value - before.value, low=after.low - before.high, high=after.high - before.low
    )


def spend(alpha: float, *, stage: int, planned: int) -> float:
    """The part of alpha that belongs to a stage, counted from 1; the parts of all stages sum to alpha at most.

    Planned stages share what isn't reserved alike. Those beyond, which open when a share is changed by hand,
    have of the reserve a half, a sixth, a twelfth and so on.
    """
    if stage <= planned:
        return alpha * (1 - RESERVE) / planned
    beyond = stage - planned
    return alpha * RESERVE / (beyond * (beyond + 1))


def _spread(units: Numbers, total: Numbers, squares: Numbers) -> Numbers:
    return (squares + 1) / (units + 2) - ((total + 1) / (units + 2)) ** 2


def _least_chance(hits: float, misses: float, value: float, alpha: float) -> float:
    def excess(chance: float) -> float:
        return float(log_rate_evidence(hits, misses, chance)) + math.log(alpha)

    if hits <= 0 or value <= _TINY or excess(_TINY) < 0:
        return 0.0
    return float(brentq(excess, _TINY, min(value, _NEARLY_ONE)))
