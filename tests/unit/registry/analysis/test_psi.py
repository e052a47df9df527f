"""The stability index: zero without a change, large with one, None with too few counts."""

import numpy as np
import pytest

from registry.analysis.psi import MIN_COUNT, compute_psi


def test_the_same_shares_are_no_drift() -> None:
    assert compute_psi([100, 200, 700], [50, 100, 350]) == pytest.approx(0, abs=1e-3)


def test_it_is_the_textbook_sum_and_symmetric() -> None:
    before, after = [5000, 3000, 2000], [2000, 3000, 5000]
    assert compute_psi(before, after) == pytest.approx(2 * 0.3 * np.log(2.5), rel=1e-3)
    assert compute_psi(before, after) == pytest.approx(compute_psi(after, before))


def test_a_bin_that_empties_stays_finite_and_one_that_was_never_used_counts_for_nothing() -> None:
    index = compute_psi([500, 500], [1000, 0])
    assert index is not None
    assert 1 < index < 10
    assert compute_psi([500, 500, 0, 0], [1000, 0, 0, 0]) == index


def test_too_few_answers_say_nothing() -> None:
    assert compute_psi([MIN_COUNT - 1, 0], [1000, 1000]) is None
    assert compute_psi([1000, 1000], [0, 0]) is None


def test_chance_alone_rarely_passes_a_tenth_at_the_fewest_answers() -> None:
    random = np.random.default_rng(7)
    shares = [0.05, 0.05, 0.1, 0.1, 0.1, 0.2, 0.4]
    indices = [
        compute_psi(random.multinomial(2800, shares).tolist(), random.multinomial(MIN_COUNT, shares).tolist())
        for _ in range(500)
    ]
    assert np.mean([index > 0.1 for index in indices if index is not None]) < 0.02


def test_different_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="3 bins"):
        compute_psi([1, 2, 3], [1, 2])
