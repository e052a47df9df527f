"""The kernel test: exact under the null, sensitive to change, and equal to its textbook sum."""

import numpy as np
import pytest

from registry.analysis.mmd import MIN_VECTORS, compute_mmd, find_novel


def cloud(rows: int, *, seed: int, shift: float = 0.0, width: int = 8):
    random = np.random.default_rng(seed)
    points = random.standard_normal((rows, width))
    points[:, 0] += shift
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_it_is_the_unbiased_sum_over_pairs() -> None:
    one, other = cloud(25, seed=1), cloud(31, seed=2, shift=1)
    result = compute_mmd(one, other, permutations=9)
    assert result is not None

    def kernel(a, b):
        return np.exp(-((a - b) ** 2).sum() / (2 * result.bandwidth**2))

    both = np.concatenate([one, other]).astype(np.float64)
    distances = [np.linalg.norm(both[i] - both[j]) for i in range(len(both)) for j in range(i)]
    assert result.bandwidth == pytest.approx(np.median(distances), rel=1e-6)
    one, other = both[:25], both[25:]
    inside = np.mean([kernel(one[i], one[j]) for i in range(25) for j in range(25) if i != j])
    outside = np.mean([kernel(other[i], other[j]) for i in range(31) for j in range(31) if i != j])
    between = np.mean([kernel(a, b) for a in one for b in other])
    assert result.mmd2 == pytest.approx(inside + outside - 2 * between, rel=1e-6)


def test_under_the_null_p_is_small_no_oftener_than_it_says() -> None:
    """300 null runs: a test of 5 % passes 0.05 + 4 standard errors in one of some 30,000 suites."""
    values = []
    for seed in range(300):
        result = compute_mmd(
            cloud(30, seed=2 * seed), cloud(40, seed=2 * seed + 1), permutations=99, seed=seed
        )
        assert result is not None
        values.append(result.p_value)
    values = np.array(values)
    for level in (0.05, 0.1, 0.3):
        assert (values <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / len(values))
    # The test is not always silent: p-values spread over the whole range.
    assert (values <= 0.5).mean() > 0.35


def test_a_shift_is_found_and_its_p_value_is_the_least_there_is() -> None:
    result = compute_mmd(cloud(150, seed=1), cloud(150, seed=2, shift=1.5), permutations=199)
    assert result is not None
    assert result.p_value == 1 / 200
    assert result.mmd2 > 0


def test_too_few_say_nothing_and_equal_vectors_no_drift() -> None:
    assert compute_mmd(cloud(MIN_VECTORS - 1, seed=1), cloud(100, seed=2)) is None
    same = np.repeat(cloud(1, seed=1), 30, axis=0)
    result = compute_mmd(same, same)
    assert result is not None
    assert (result.mmd2, result.p_value) == (0.0, 1.0)


def test_the_newest_is_farthest_from_all_that_was() -> None:
    reference = cloud(50, seed=1)
    recent = np.concatenate([reference[:5], -reference.mean(axis=0, keepdims=True)])
    recent[-1] /= np.linalg.norm(recent[-1])
    result = find_novel(reference, recent, limit=2)
    assert result[0].row == 5
    assert result[1].nearest == pytest.approx(1, abs=1e-5)
    assert find_novel(reference[:0], recent, limit=2) == []
    assert find_novel(reference, recent[:0], limit=2) == []
