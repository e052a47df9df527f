"""Markdown tables."""

from collections.abc import Iterator, Sequence


def table(rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a Markdown table; the first row is its head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in body:
        yield f"| {' | '.join(row)} |"
