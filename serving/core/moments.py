"""Times as people write them: a date, an age such as `24h`, or a word.

It holds for every protocol and for the command line. Times with an offset are left to their callers.
"""

import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

FORMS: Final = (
    "a time with its offset (2026-01-31T12:00:00Z), a date, an age (24h, 7d), now, today or yesterday"
)

_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_SPAN: Final = re.compile(r"([+-]?)(\d{1,5})([smhdw])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DAYS_AGO: Final = {"today": 0, "yesterday": 1}


def read_moment(text: str, *, ahead: bool = False) -> datetime | None:
    """Return the moment that a date (its midnight in UTC), an age or a word names, None for other texts.

    `ahead`: a span without a sign is time to come, not an age.
    """
    if _DATE.fullmatch(text):
        with suppress(ValueError):
            return _midnight(date.fromisoformat(text))
        return None
    now = datetime.now(UTC)
    if span := _SPAN.fullmatch(text):
        sign, count, unit = span.groups()
        length = timedelta(**{_UNITS[unit]: int(count)})
        return now + length if sign == "+" or (ahead and not sign) else now - length
    if text == "now":
        return now
    if text in _DAYS_AGO:
        return _midnight(now.date()) - timedelta(days=_DAYS_AGO[text])
    return None


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
