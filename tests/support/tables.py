"""Markdown tables, and the pages that programs write them into."""

from collections.abc import Iterator, Sequence
from pathlib import Path


def table(rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a Markdown table; the first row is its head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in body:
        yield f"| {' | '.join(row)} |"


def write_between(page: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Write the lines between two markers of a page, and keep what is around them.

    Raises:
        ValueError: the page hasn't both markers.
    """
    before, begun, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"{page} has no markers")
    page.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{after}"]))
