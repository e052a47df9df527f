"""The drift of a version's recent answers from earlier ones. A pure function of counts."""

import math
from collections.abc import Sequence
from typing import Final

# If there were fewer answers, chance alone would look like drift.
MIN_COUNT: Final = 200
_PRIOR: Final = 0.5


def compute_psi(reference: Sequence[int], recent: Sequence[int]) -> float | None:
    """Return the population stability index of counts over the same bins; None if either side has too few.

    The index is Σ (p - q) ln(p / q), with a half added to each count so that an empty bin stays finite. By custom
    a value below 0.1 is stable and one above 0.25 a shift (Siddiqi, Credit Risk Scorecards, 2006).

    Raises:
        ValueError: the bins differ.
    """
    if len(reference) != len(recent):
        raise ValueError(f"{len(reference)} bins can't be compared with {len(recent)}")
    # Bins that are empty on both sides carry no information, and their halves would dilute the others.
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
