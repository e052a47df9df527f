"""The statistics of an experiment: pure functions of counts.

All intervals and p-values are always-valid: one may look after every feedback and act at any of these looks.
They count units, not predictions, because the answers of one unit depend on each other.
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

# The standard deviation of the mixture, in accuracy; differences of about this size are detected soonest.
DIFFERENCE_SCALE = 0.03
# The weight, in units, of the prior belief about the split.
RATIO_CONCENTRATION = 1000.0
LEAST_SHARE = 1e-9
# The part of alpha that is reserved for unplanned stages.
RESERVE = 0.2

# The bounds within which a likelihood stays finite, even if a tiny part of a unit is a miss.
_TINY, _NEARLY_ONE = 1e-300, 1 - 2**-53


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmFeedback:
    """The feedback on an arm; each unit counts once, by the share of its judged answers that were right.

    `units` are distinct units with feedback; `total` and `squares` are the sums of their shares and of the squares
    of their shares.
    """

    units: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def sums(self) -> Sums:
        return self.units, self.total, self.squares

    @classmethod
    def from_shares(cls, shares: Iterable[float]) -> Self:
        """Sum up the units' shares of right answers."""
        values = list(shares)
        return cls(units=len(values), total=math.fsum(values), squares=math.fsum(v**2 for v in values))


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The units of both arms in a period in which the challenger's share didn't change.

    `champion` and `challenger` count the distinct units that the experiment saw for the first time, each once.
    """

    share: float
    champion: int
    challenger: int


def squared_error(champion: Sums, challenger: Sums) -> Numbers:
    """Return the variance of the difference of both arms' means, elementwise; an arm is units (≥ 1), total, squares.

    Two units are added to the sample variance of an arm, one all right and one all wrong (Laplace's rule; units can't
    differ more), so that no variance is zero; their effect vanishes as 1/units. No arm's variance is taken to be
    smaller than the pooled one, as in a score test: if a small arm is right 100 times in a row and a large arm 97
    times in 100, the small arm is lucky rather than certain.
    """
    spreads = [_spread(*champion), _spread(*challenger)]
    sizes = [champion[0], challenger[0]]
    pooled = (sizes[0] * spreads[0] + sizes[1] * spreads[1]) / (sizes[0] + sizes[1])
    variance: Numbers = sum(
        np.maximum(spread, pooled) / size for spread, size in zip(spreads, sizes, strict=True)
    )
    return variance


def confidence_radius(variance: Numbers, *, alpha: float, scale: float) -> Numbers:
    """Return half the width of an asymptotic normal-mixture confidence sequence at level 1 - alpha, elementwise.

    `variance` is the squared standard error of the estimate at this look. For information I = 1/variance,
    the score I·estimate is nearly a Brownian motion in I, whatever the arms' sizes are; mixing its likelihood
    ratios over effects from N(0, scale²) gives a martingale that exceeds 1/alpha with probability at most
    alpha (Robbins; Waudby-Smith et al., arXiv 2103.06476, whose t·ρ² is scale²/variance).
    `scale` is in units of the effect; in units of z the mixture would change at every look, and there would be no
    martingale.
    """
    precision = scale**2 / variance
    half: Numbers = np.sqrt(variance * (1 + 1 / precision) * (np.log1p(precision) - 2 * math.log(alpha)))
    return half


def accuracy(arm: ArmFeedback, *, level: float) -> Interval | None:
    """Return an arm's accuracy with an always-valid interval within [0, 1]; None without feedback."""
    return rate(arm.total, arm.units, alpha=1 - level)


def accuracy_difference(champion: ArmFeedback, challenger: ArmFeedback, *, alpha: float) -> Interval | None:
    """Return the challenger's accuracy minus the champion's, within [-1, 1]; None if an arm has no feedback.

    The interval is always-valid: over all looks together, it misses the true difference on either side with
    probability at most about alpha. Both arms' feedback must be on answers at one share: the requests change with
    time, so arms that are weighted differently over time differ by that alone.
    """
    if not champion.units or not challenger.units:
        return None
    value = challenger.total / challenger.units - champion.total / champion.units
    variance = squared_error(champion.sums, challenger.sums)
    half = float(confidence_radius(variance, alpha=alpha, scale=DIFFERENCE_SCALE))
    return Interval(value=value, low=max(-1.0, value - half), high=min(1.0, value + half))


def log_bayes_factor(champion: Numbers, challenger: Numbers, share: float) -> Numbers:
    """Return the log Bayes factor against units being split by the challenger's `share`, elementwise.

    This is the Dirichlet-multinomial test (Lindon & Malek, arXiv 2011.03567) for two arms: a beta prior around the
    share, worth `RATIO_CONCENTRATION` units, against the share itself. Its exponential is a martingale of mean 1
    under the true share, which lies in (0, 1).
    """
    a, b = RATIO_CONCENTRATION * share, RATIO_CONCENTRATION * (1 - share)
    marginal = betaln(a + challenger, b + champion) - betaln(a, b)
    factor: Numbers = marginal - challenger * math.log(share) - champion * math.log1p(-share)
    return factor


def sample_ratio(splits: Sequence[Split]) -> float:
    """Return a sequential p-value that the units were split by the shares: min(1, 1 / Bayes factor).

    The factors of several splits multiply, and the product is a martingale, too. A share within a billionth of 0 or 1
    splits nothing and is left out.
    The smallest p-value over all looks ever reaches alpha with probability at most alpha. A caller may therefore act at
    the first look at which it does, without memory, and may show the smallest p-value so far.
    """
    evidence = sum(
        float(log_bayes_factor(split.champion, split.challenger, split.share))
        for split in splits
        if LEAST_SHARE < split.share < 1 - LEAST_SHARE
    )
    return math.exp(min(0.0, -evidence))


def log_rate_evidence(hits: Numbers, misses: Numbers, chance: float) -> Numbers:
    """Return the log Bayes factor against events having the probability `chance`, elementwise.

    It mixes over Beta(1/2, 1/2) against the chance, in (0, 1) (Robbins, 1970): its exponential is a martingale of
    mean 1 for independent events, however rare. Shares in [0, 1] may take the place of events: by convexity they
    give a supermartingale, so the bound still holds.
    """
    mixture = betaln(hits + 0.5, misses + 0.5) - betaln(0.5, 0.5)
    factor: Numbers = mixture - xlogy(hits, chance) - xlog1py(misses, -chance)
    return factor


def rate(hits: float, trials: int, *, alpha: float) -> Interval | None:
    """Return the rate of an event with an always-valid interval at level 1 - alpha; None without trials.

    The interval holds the chances for which the factor of `log_rate_evidence` is less than 1/alpha. It isn't an
    approximation, and it is wider than needed if hits are shares of several answers.
    """
    if not trials:
        return None
    value = min(1.0, hits / trials)
    return Interval(
        value=value,
        low=_least_chance(hits, trials - hits, value, alpha),
        high=1 - _least_chance(trials - hits, hits, 1 - value, alpha),
    )


def rate_difference(
    champion: tuple[int, int], challenger: tuple[int, int], *, alpha: float
) -> Interval | None:
    """Return the challenger's rate minus the champion's, each from (events, trials); always-valid, by Bonferroni."""
    before, after = (rate(*counts, alpha=alpha / 2) for counts in (champion, challenger))
    if before is None or after is None:
        return None
    return Interval(
        value=after.value - before.value, low=after.low - before.high, high=after.high - before.low
    )


def alpha_of_stage(alpha: float, *, stage: int, planned: int) -> float:
    """Return the part of alpha for a stage, counted from 1; the parts of all stages sum to alpha at most.

    Planned stages have equal parts of what isn't reserved. Further stages, which begin when a share is changed by
    hand, have a half, a sixth, a twelfth and so on of the reserve.
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
