"""Ids: order, bounds, times, and what a text's id reveals."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.ids import TextIds, Uuid7Clock, fingerprint, uuid7_floor, uuid7_time
from db.errors import ClockBeyondPartitions

KEY = b"0123456789abcdef0123456789abcdef"
NOW = datetime(2026, 5, 17, 12, 30, 15, 123456, tzinfo=UTC)
MOMENTS = st.integers(0, 200_000_000_000_000_000).map(
    lambda microseconds: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
)


def nanoseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def test_ids_are_version_7_of_the_right_variant_and_grow_within_a_millisecond() -> None:
    clock = Uuid7Clock(lambda: nanoseconds(NOW))
    ids = [clock.next() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {value.version for value in ids} == {7}
    assert {value.variant for value in ids} == {"specified in RFC 4122"}


def test_a_clock_that_steps_back_never_makes_smaller_ids() -> None:
    times = iter([NOW, NOW - timedelta(days=40), NOW - timedelta(hours=1), NOW + timedelta(seconds=1)])
    clock = Uuid7Clock(lambda: nanoseconds(next(times)))
    ids = [clock.next() for _ in range(4)]
    assert ids == sorted(ids)
    assert uuid7_time(ids[2]) - NOW < timedelta(milliseconds=1)


def test_a_clock_before_the_first_partition_is_lifted_to_it() -> None:
    clock = Uuid7Clock(lambda: 0)
    clock.set_bounds(NOW, NOW + timedelta(days=30))
    assert uuid7_time(clock.next()) >= NOW.replace(microsecond=123000)


def test_a_clock_beyond_the_last_partition_is_refused_until_there_is_one() -> None:
    clock = Uuid7Clock(lambda: nanoseconds(NOW))
    clock.set_bounds(NOW - timedelta(days=60), NOW)
    with pytest.raises(ClockBeyondPartitions):
        clock.next()
    clock.set_bounds(NOW - timedelta(days=60), NOW + timedelta(days=30))
    assert abs(uuid7_time(clock.next()) - NOW) < timedelta(milliseconds=1)


def test_a_clock_that_was_ahead_and_is_right_again_goes_on() -> None:
    times = iter([NOW + timedelta(days=120), NOW])
    clock = Uuid7Clock(lambda: nanoseconds(next(times)))
    clock.set_bounds(NOW - timedelta(days=30), NOW + timedelta(days=210))
    ahead = clock.next()
    clock.set_bounds(NOW - timedelta(days=30), NOW + timedelta(days=90))
    assert clock.next() > ahead


@given(MOMENTS)
def test_the_floor_of_a_time_is_below_every_id_made_then_and_above_earlier_ones(moment: datetime) -> None:
    result = Uuid7Clock(lambda: nanoseconds(moment)).next()
    assert uuid7_floor(moment) <= result
    assert uuid7_floor(uuid7_time(result)) <= result
    assert moment - timedelta(microseconds=1) <= uuid7_time(result) <= moment
    if moment > datetime(1970, 1, 2, tzinfo=UTC):
        earlier = Uuid7Clock(lambda: nanoseconds(moment - timedelta(microseconds=1))).next()
        assert earlier < uuid7_floor(moment)


def test_a_time_before_1970_has_the_floor_of_the_epoch() -> None:
    assert uuid7_floor(datetime(1, 1, 1, tzinfo=UTC)) == uuid7_floor(datetime(1970, 1, 1, tzinfo=UTC))


def test_a_text_has_one_id_under_one_key_and_another_under_another() -> None:
    ids, others = TextIds(KEY), TextIds(KEY[::-1])
    assert ids("Grüße 👋") == ids("Grüße 👋")
    assert ids("Grüße 👋") != others("Grüße 👋")
    assert ids("a") != ids("b")
    assert isinstance(ids("a"), UUID)
    assert ids("a").version == 8


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        TextIds(b"short")


def test_the_fingerprint_tells_keys_apart_and_is_no_text_id() -> None:
    assert len(fingerprint(KEY)) == 16
    assert fingerprint(KEY) != fingerprint(KEY[::-1])
