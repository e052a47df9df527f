"""Drift: how far what a version answers of late lies from what it answered before. Pure: counts in, a figure out."""

import math
from collections.abc import Sequence
from typing import Final

# Fewer answers than these say nothing: chance alone would look like drift.
MIN_COUNT: Final = 200
_PRIOR: Final = 0.5


def compute_psi(reference: Sequence[int], recent: Sequence[int]) -> float | None:
    """The population stability index of counts over the same bins; None if either side has too few.

    Σ (p - q) ln(p / q), each count raised by a half so that an empty bin stays finite. By custom below 0.1 is
    steady and above 0.25 a shift (Siddiqi, Credit Risk Scorecards, 2006).

    Raises:
        ValueError: the bins differ.
    """
    if len(reference) != len(recent):
        raise ValueError(f"{len(reference)} bins can't be compared with {len(recent)}")
    # Bins that are empty on both sides say nothing, and shouldn't shrink the others by their halves.
    pairs = [(before, after) for before, after in zip(reference, recent, strict=True) if before or after]
    if min(sum(reference), sum(recent)) < MIN_COUNT:
        return None
    before_total = sum(before + _PRIOR for before, _ in pairs)
    after_total = sum(after + _PRIOR for _, after in pairs)
    total = 0.0
    for before, after in pairs:
        p, q = (before + _PRIOR) / before_total, (after + _PRIOR) / after_total
        total += (q - p) * math.log(q / p)
    return total
