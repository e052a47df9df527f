"""Assignment by hash: sticky, uniform, independent between experiments, and with minimal moves."""

from hypothesis import given
from hypothesis import strategies as st

from registry.experiments.assignment import bucket, in_challenger
from tests.support import simulations as simulated

SHARES = st.floats(0, 1)


@given(salt=st.text(st.characters(codec="utf-8")), unit=st.text(st.characters(codec="utf-8")))
def test_any_unit_has_one_bucket_below_one(salt: str, unit: str) -> None:
    assert 0 <= bucket(salt, unit) < 1
    assert bucket(salt, unit) == bucket(salt, unit)


def test_assignment_never_changes_between_releases() -> None:
    assert bucket("salt", "unit") == 0.9122263564339135
    assert bucket("x" * 100, "unit") == 0.9789367791166659


@given(unit=st.integers(), one=SHARES, other=SHARES)
def test_higher_share_keeps_every_unit_that_the_challenger_has(unit: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert in_challenger("salt", str(unit), high) or not in_challenger("salt", str(unit), low)


def test_share_of_nothing_is_nobody_and_of_all_is_everybody() -> None:
    units = [str(number) for number in range(1000)]
    assert not any(in_challenger("salt", unit, 0.0) for unit in units)
    assert all(in_challenger("salt", unit, 1.0) for unit in units)


def test_raised_share_moves_no_more_units_than_it_must() -> None:
    units = [str(number) for number in range(20_000)]
    moved = sum(in_challenger("salt", unit, 0.10) != in_challenger("salt", unit, 0.25) for unit in units)
    assert abs(moved / len(units) - 0.15) < 0.01


def test_units_are_uniform_over_buckets() -> None:
    assert simulated.uniform(50_000) > 0.001


def test_two_experiments_split_independently() -> None:
    assert simulated.independent(50_000) > 0.001


def test_one_salt_for_two_experiments_would_not_be_independent() -> None:
    assert simulated.independent(5_000, salts=("one", "one")) < 1e-6
