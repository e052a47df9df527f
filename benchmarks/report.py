"""A result as a table on the screen, and as JSON and a plot in a folder (`VALENCE_BENCH`, else .cache/bench)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import machine
from tests.support.tables import table

FOLDER = Path(os.environ.get("VALENCE_BENCH", ".cache/bench"))


def middle(values: Sequence[float]) -> str:
    """Write the median with its range."""
    low, high = min(values), max(values)
    digits = 2 if median(values) < 10 else 0
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratios round by round: parts of one round share the machine's state."""
    return [one / other for one, other in zip(ours, theirs, strict=True) if other]


def report(
    name: str,
    rows: Sequence[Sequence[object]],
    found: Mapping[str, Any],
    bars: Mapping[str, Sequence[float]] | None = None,
    unit: str = "",
) -> None:
    """Print the table; keep it with all that was `found`, and `bars` (median, and whiskers of its range)."""
    lines = [machine(), "", *table(rows)]
    print("\n".join(lines), flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = {"machine": machine(), "table": [[str(cell) for cell in row] for row in rows], **found}
    (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    if bars:
        _plot(FOLDER / f"{name}.svg", bars, unit)


def _plot(file: Path, bars: Mapping[str, Sequence[float]], unit: str) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    names = list(bars)[::-1]
    middles = [median(bars[name]) for name in names]
    whiskers = [
        [value - min(bars[name]) for name, value in zip(names, middles, strict=True)],
        [max(bars[name]) - value for name, value in zip(names, middles, strict=True)],
    ]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.32 * len(names)), layout="constrained")
    axes.barh(names, middles, xerr=whiskers, color="#4c72b0", ecolor="#333333", height=0.65)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    # Without a date, so that the same figures give the same file.
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
