"""The page on faults: writes the table between its markers and keeps the prose around it."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.support.faults.fault import Fault
from tests.support.faults.trial import MOST_RECOVERY_SECONDS, Result
from tests.support.tables import table, write_between

PAGE = Path("docs/faults.md")
BEGIN, END = "<!-- written by `make faults`: begin -->", "<!-- end -->"

_HEAD = (
    "fault", "sent", "answered", "refused", "failed", "wrong", "lost", "lasted, s", "recovered after, s", "goal",
)  # fmt: skip


def rows(results: Sequence[Result]) -> list[Sequence[object]]:
    """Return the table: its head, then a line for each fault."""
    return [_HEAD, *map(_row, results)]


def write(
    page: Path, machine: str, faults: Sequence[Fault], results: Sequence[Result], missing: dict[str, str]
) -> None:
    """Write the results and their machine into the page.

    Raises:
        ValueError: the page has no place for them.
    """
    head = f"{machine}, {datetime.now(UTC):%d %B %Y}."
    write_between(page, BEGIN, END, [head, "", *_lines(faults, results, missing)])


def _lines(faults: Sequence[Fault], results: Sequence[Result], missing: dict[str, str]) -> Iterator[str]:
    yield from table(rows(results))
    yield ""
    for fault in faults:
        reason = f" Not tried here: it needs {missing[fault.name]}." if fault.name in missing else ""
        yield f"- `{fault.name}`: {fault.how}.{reason}"


def _row(result: Result) -> Sequence[object]:
    return (
        f"`{result.name}`",
        result.sent,
        result.answered,
        _count(result.refused, result.refusals),
        result.failed,
        result.wrong,
        result.lost,
        f"{result.lasted:.1f}",
        "never" if result.recovered is None else f"{result.recovered:.1f}",
        "; ".join(result.misses) or "met",
    )


def _count(number: int, said: dict[str, int]) -> str:
    if not number:
        return "0"
    return ", ".join(f"{count} × {status}" for status, count in sorted(said.items()))


GOAL = (
    f"wrong 0, lost 0, failed 0, recovered within {MOST_RECOVERY_SECONDS:.0f} s of the injury; "
    "refused means 429 or 503 with Retry-After"
)
