"""Times as people write them."""

from datetime import UTC, datetime, timedelta

import pytest

from serving.core.moments import read_moment


def test_a_date_is_its_midnight_in_utc() -> None:
    assert read_moment("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ahead", "expected"),
    [
        ("24h", False, timedelta(hours=-24)),
        ("-24h", False, timedelta(hours=-24)),
        ("+24h", False, timedelta(hours=24)),
        ("90d", True, timedelta(days=90)),
        ("-90d", True, timedelta(days=-90)),
        ("2w", False, timedelta(weeks=-2)),
        ("30m", False, timedelta(minutes=-30)),
        ("99999w", False, timedelta(weeks=-99999)),
        ("now", False, timedelta()),
    ],
)
def test_a_span_counts_from_now(text: str, ahead: bool, expected: timedelta) -> None:
    before = datetime.now(UTC)
    moment = read_moment(text, ahead=ahead)
    assert moment is not None
    assert before + expected <= moment <= datetime.now(UTC) + expected


def test_today_and_yesterday_begin_at_midnight_in_utc() -> None:
    before = datetime.now(UTC).date()
    today, yesterday = read_moment("today"), read_moment("yesterday")
    assert today is not None
    assert yesterday is not None
    assert today.date() in {before, datetime.now(UTC).date()}
    assert (today.hour, today.minute, today.second, today.microsecond, today.tzinfo) == (0, 0, 0, 0, UTC)
    assert today - yesterday in {timedelta(days=1), timedelta()}


@pytest.mark.parametrize(
    "text", ["", "7", "d", "7 d", "7y", "last week", "2026-1-31", "20260131", "2026-02-30", "7D", "٧d"]
)
def test_other_texts_are_no_moment(text: str) -> None:
    assert read_moment(text) is None
