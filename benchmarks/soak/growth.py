"""Whether a measure grows: a robust line through its samples after the warm-up."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from scipy.stats import theilslopes

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """A measure's median, greatest value and slope an hour, with the slope's 95 % interval."""

    median: float
    greatest: float
    an_hour: float
    low: float
    high: float

    def is_flat(self, *, share: float, allowance: float) -> bool:
        """Whether it is not certain that it grows by more an hour than this share of it or this allowance."""
        return self.low <= max(share * self.median, allowance)


def growth(times: Sequence[float], values: Sequence[float]) -> Growth:
    """Fit a line by Theil and Sen (Sen 1968, JASA 63, 1379-1389), which single peaks don't move.

    Args:
        times: seconds.
        values: one for each time, at least two.
    """
    slope, _, low, high = theilslopes(values, times)
    return Growth(
        median=median(values),
        greatest=max(values),
        an_hour=float(slope) * HOUR,
        low=float(low) * HOUR,
        high=float(high) * HOUR,
    )
