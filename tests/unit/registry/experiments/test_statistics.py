"""The statistics of experiments: against their formulas, by exact enumeration, and by small simulations.

`python -m benchmarks.trials` runs the same simulations 10,000 times.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import comb
from scipy.stats import norm

from registry.experiments import statistics
from registry.experiments.statistics import ArmFeedback, Split
from tests.support import breadth
from tests.support import simulations as simulated

MEANS = st.lists(st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 2 / 3, 0.8, 1.0]), min_size=1, max_size=50)


def votes(units: int, right: int) -> ArmFeedback:
    """Return units with one judged answer each."""
    return ArmFeedback(units=units, total=right, squares=right)


def test_units_are_summed_by_their_shares() -> None:
    assert ArmFeedback.from_shares([1.0, 0.5, 0.0]) == ArmFeedback(units=3, total=1.5, squares=1.25)
    assert ArmFeedback.from_shares([]) == ArmFeedback()


def test_error_of_four_units_with_the_two_that_are_added() -> None:
    # Shares 1, 1, 1, 0 and the added 1, 0: mean 4/6, variance 4/6 - 16/36 = 2/9, over four units of each arm.
    assert statistics.squared_error((4, 3, 3), (4, 3, 3)) == pytest.approx(2 * 2 / 9 / 4)


def test_small_arm_is_no_less_varied_than_both_together() -> None:
    before = 9701 / 10_002 * 301 / 10_002
    lucky = 101 / 102 * 1 / 102
    together = (10_000 * before + 100 * lucky) / 10_100
    assert statistics.squared_error((10_000, 9700, 9700), (100, 100, 100)) == pytest.approx(
        before / 10_000 + together / 100
    )
    assert statistics.accuracy_difference(votes(10_000, 9700), votes(100, 100), alpha=0.05).low < -0.01


def test_difference_is_the_mixture_formula() -> None:
    result = statistics.accuracy_difference(votes(1000, 800), votes(500, 420), alpha=0.05)
    before, after = 801 / 1002 * 201 / 1002, 421 / 502 * 81 / 502
    together = (1000 * before + 500 * after) / 1500
    variance, mixture = before / 1000 + together / 500, statistics.DIFFERENCE_SCALE**2
    half = math.sqrt(
        variance * (variance + mixture) / mixture * math.log((variance + mixture) / (variance * 0.05**2))
    )
    assert result is not None
    assert result.value == pytest.approx(0.04)
    assert (result.low, result.high) == pytest.approx((0.04 - half, 0.04 + half))


@pytest.mark.parametrize(("variance", "alpha"), [(1e-2, 0.05), (1e-4, 0.05), (1e-4, 0.001)])
def test_at_its_radius_an_estimate_has_a_mixed_likelihood_ratio_of_one_over_alpha(
    variance: float, alpha: float
) -> None:
    scale = 0.03
    estimate = float(statistics.confidence_radius(variance, alpha=alpha, scale=scale))

    def weighed(effect: float) -> float:
        ratio = norm.pdf(estimate, effect, variance**0.5) / norm.pdf(estimate, 0, variance**0.5)
        return float(ratio * norm.pdf(effect, 0, scale))

    mixed, _ = quad(weighed, -0.5, 0.5, points=[0, estimate], limit=200)
    assert mixed == pytest.approx(1 / alpha, rel=1e-6)


@pytest.mark.parametrize("right", [0, 30])
def test_units_that_all_agree_are_not_sure(right: int) -> None:
    result = statistics.accuracy_difference(votes(30, right), votes(30, right), alpha=0.05)
    assert result is not None
    assert result.low < -0.05
    assert result.high > 0.05
    assert statistics.accuracy_difference(votes(2, 0), votes(2, 2), alpha=0.05).low < 0


def test_arm_without_feedback_has_no_accuracy_and_no_difference() -> None:
    assert statistics.accuracy(ArmFeedback(), level=0.95) is None
    assert statistics.accuracy_difference(ArmFeedback(), votes(10, 5), alpha=0.05) is None
    assert statistics.accuracy_difference(votes(10, 5), ArmFeedback(), alpha=0.05) is None


def test_interval_narrows_with_units_and_with_alpha() -> None:
    def width(units: int, alpha: float) -> float:
        result = statistics.accuracy_difference(
            votes(units, units * 4 // 5), votes(units, units * 4 // 5), alpha=alpha
        )
        return result.high - result.low

    assert width(10_000, 0.05) < width(1000, 0.05) < width(1000, 0.01)
    assert width(1_000_000, 0.05) < 0.01


def test_small_arm_decides_how_wide_the_interval_is() -> None:
    small = statistics.accuracy_difference(votes(99_000, 79_200), votes(1000, 800), alpha=0.05)
    even = statistics.accuracy_difference(votes(50_000, 40_000), votes(50_000, 40_000), alpha=0.05)
    assert small.high - small.low > 4 * (even.high - even.low)


@given(shares=MEANS)
def test_accuracy_lies_in_its_interval_and_the_interval_in_the_possible(shares: list[float]) -> None:
    result = statistics.accuracy(ArmFeedback.from_shares(shares), level=0.95)
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.low < result.high


@given(one=MEANS, other=MEANS)
def test_swapped_arms_swap_the_difference(one: list[float], other: list[float]) -> None:
    forth = statistics.accuracy_difference(
        ArmFeedback.from_shares(one), ArmFeedback.from_shares(other), alpha=0.05
    )
    back = statistics.accuracy_difference(
        ArmFeedback.from_shares(other), ArmFeedback.from_shares(one), alpha=0.05
    )
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_evidence_of_a_split_is_a_martingale(share: float) -> None:
    for units in range(12):
        mine = np.arange(units + 1)
        now = np.exp(statistics.log_bayes_factor(units - mine, mine, share))
        chances = comb(units, mine) * share**mine * (1 - share) ** (units - mine)
        assert chances @ now == pytest.approx(1.0)
        with_another = np.exp(statistics.log_bayes_factor(units - mine, mine + 1, share))
        without = np.exp(statistics.log_bayes_factor(units - mine + 1, mine, share))
        assert share * with_another + (1 - share) * without == pytest.approx(now)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_true_split_is_called_broken_in_at_most_one_of_a_thousand(share: float) -> None:
    # Exact: the probabilities of all counts not called broken yet, unit after unit.
    chances, called = np.ones(1), 0.0
    for units in range(1, 2001):
        chances = np.append(chances * (1 - share), 0) + np.append(0, chances * share)
        mine = np.arange(units + 1)
        broken = statistics.log_bayes_factor(units - mine, mine, share) >= -math.log(0.001)
        called += chances[broken].sum()
        chances = np.where(broken, 0, chances)
    assert 0 < called <= 0.001


def test_evidence_of_stages_multiplies() -> None:
    splits = [Split(share=0.1, champion=900, challenger=140), Split(share=0.5, champion=480, challenger=560)]
    one, other = (statistics.sample_ratio([split]) for split in splits)
    assert statistics.sample_ratio(splits) == pytest.approx(one * other)
    assert statistics.sample_ratio(splits) < min(one, other) < 1


def test_share_that_splits_nothing_says_nothing_of_the_split() -> None:
    assert statistics.sample_ratio([]) == 1.0
    assert statistics.sample_ratio([Split(share=0.0, champion=100, challenger=1)]) == 1.0
    assert statistics.sample_ratio([Split(share=1.0, champion=1, challenger=100)]) == 1.0


def test_split_as_planned_has_no_evidence_against_it() -> None:
    assert statistics.sample_ratio([Split(share=0.01, champion=99_000, challenger=1000)]) == 1.0


def test_lost_arm_is_found_within_150_units() -> None:
    assert statistics.sample_ratio([Split(share=0.5, champion=150, challenger=0)]) < 0.001


def test_rate_without_trials_is_unknown() -> None:
    assert statistics.rate(0, 0, alpha=0.05) is None
    assert statistics.rate_difference((0, 0), (1, 10), alpha=0.05) is None


@given(events=st.integers(0, 1000), others=st.integers(0, 1000))
def test_rate_lies_in_its_interval_and_mirrors(events: int, others: int) -> None:
    if not events + others:
        return
    result = statistics.rate(events, events + others, alpha=0.05)
    mirrored = statistics.rate(others, events + others, alpha=0.05)
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert (result.low, result.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-9)


@given(events=st.floats(0, 1), trials_=st.integers(1, 3))
def test_rate_of_shares_has_an_interval_however_small_they_are(events: float, trials_: int) -> None:
    result = statistics.rate(events, trials_, alpha=0.05)
    assert 0 <= result.low <= result.value <= result.high <= 1


@pytest.mark.parametrize("chance", [0.02, 0.3])
def test_rate_is_ever_out_of_its_interval_in_at_most_alpha(chance: float) -> None:
    # Exact, as above.
    chances, missed = np.ones(1), 0.0
    for seen in range(1, 61):
        chances = np.append(chances * (1 - chance), 0) + np.append(0, chances * chance)
        results = [statistics.rate(events, seen, alpha=0.05) for events in range(seen + 1)]
        out = np.array([not one.low <= chance <= one.high for one in results])
        missed += chances[out].sum()
        chances = np.where(out, 0, chances)
    assert 0 < missed <= 0.05


def test_shares_are_weaker_evidence_than_the_answers_they_are_of() -> None:
    # The likelihood of a share is at most the mean likelihood of the answers: a supermartingale, exactly.
    for chance in (0.1, 0.5, 0.8):
        for before in range(6):
            hits = np.array([0.0, 0.5, 1.0])
            weights = np.array([(1 - chance) ** 2, 2 * chance * (1 - chance), chance**2])
            after = np.exp(statistics.log_rate_evidence(before + hits, 5 - before + 1 - hits, chance))
            now = np.exp(statistics.log_rate_evidence(before, 5 - before, chance))
            assert weights @ after <= now


def test_no_fault_in_a_thousand_is_compatible_with_few() -> None:
    result = statistics.rate(0, 1000, alpha=0.05)
    assert result.low == 0
    # The rate at which a thousand without a fault are 0.05 times as likely as under the mixture.
    mixture = math.gamma(0.5) * math.exp(math.lgamma(1000.5) - math.lgamma(1001)) / math.pi
    assert result.high == pytest.approx(1 - (0.05 * mixture) ** (1 / 1000))


def test_increase_is_the_gap_between_both_bounds() -> None:
    before, after = statistics.rate(10, 10_000, alpha=0.005), statistics.rate(50, 1000, alpha=0.005)
    result = statistics.rate_difference((10, 10_000), (50, 1000), alpha=0.01)
    assert result.value == pytest.approx(0.049)
    assert (result.low, result.high) == pytest.approx((after.low - before.high, after.high - before.low))
    assert result.low > 0.02


def test_stages_never_spend_more_than_alpha() -> None:
    assert statistics.alpha_of_stage(0.05, stage=1, planned=1) == pytest.approx(0.04)
    assert statistics.alpha_of_stage(0.05, stage=2, planned=1) == pytest.approx(0.005)
    for planned in (1, 5):
        spent = sum(
            statistics.alpha_of_stage(0.05, stage=stage, planned=planned) for stage in range(1, 10_000)
        )
        assert 0.0499 < spent <= 0.05


def test_simulation_calls_what_difference_calls() -> None:
    (champion, challenger), _ = simulated.feedback(np.random.default_rng(0), 3, units=400)
    better, worse = simulated.sides(champion, challenger)
    for run in range(3):
        for look in range(0, 2000, 97):
            arms = [
                ArmFeedback(
                    units=int(arm.units[run, look]),
                    total=arm.total[run, look],
                    squares=arm.squares[run, look],
                )
                for arm in (champion, challenger)
            ]
            result = statistics.accuracy_difference(*arms, alpha=0.05)
            assert better[run, look] == (result is not None and result.value > 0 and result.low > 0)
            assert worse[run, look] == (result is not None and result.value < 0 and result.high < 0)


@pytest.mark.parametrize("rolling", [False, True])
def test_equal_arms_looked_at_after_every_feedback_are_called_different_in_at_most_5_percent(
    rolling: bool,
) -> None:
    result = simulated.null(breadth.chosen(120, 240), rolling=rolling)
    assert result["units"].mean() <= 0.05
    assert result["accuracy"].mean() <= 0.05
    assert result["predictions"].mean() > (0.15 if rolling else 0.06)


def test_equal_arms_at_a_share_of_1_percent_are_called_different_in_at_most_5_percent() -> None:
    assert simulated.small_share(breadth.chosen(200, 400)).mean() <= 0.05
    assert simulated.small_share(breadth.chosen(200, 400), accuracy=0.97).mean() <= 0.05


def test_texts_that_become_easier_during_a_ramp_make_no_difference() -> None:
    result = simulated.drifting(breadth.chosen(100, 300))
    assert result["stages"].mean() <= 0.05
    assert result["pooled"].mean() > 0.5


def test_three_points_are_found_within_4000_feedbacks_an_arm() -> None:
    result = simulated.better(100)
    assert np.median(result["feedbacks"]) <= 4000
    assert result["right"].mean() > 0.95


def test_true_split_is_left_alone_and_a_broken_one_is_caught_by_20000_units() -> None:
    assert simulated.sample_ratio(200).mean() <= 0.001
    assert simulated.sample_ratio(200, shares=simulated.RAMP).mean() <= 0.001
    assert simulated.sample_ratio(100, truth=0.48).mean() >= 0.9
    assert simulated.sample_ratio(60, answers=5).mean() > 0.05
