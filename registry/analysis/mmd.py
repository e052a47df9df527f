"""The test whether two sets of vectors come from one distribution, and the search for new vectors. Pure functions."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# The test has no meaning if a side has fewer vectors.
MIN_VECTORS: Final = 20
PERMUTATIONS: Final = 499
_TINY: Final = 1e-12
# Distances below this are rounding errors.
_SAME: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class MmdResult:
    """The unbiased squared maximum mean discrepancy, which may be negative, and its p-value.

    `bandwidth` is that of the Gaussian kernel; the smallest possible `p_value` is 1 / (`permutations` + 1).
    """

    mmd2: float
    bandwidth: float
    p_value: float
    permutations: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NovelVector:
    """A row of the recent vectors, and its cosine to the nearest vector of the reference."""

    row: int
    nearest: float


def compute_mmd(
    reference: NDArray[np.float32],
    recent: NDArray[np.float32],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> MmdResult | None:
    """Return the MMD² of two sets [n, d] and [m, d] of one space; None if either has fewer than `MIN_VECTORS`.

    The kernel is Gaussian, its bandwidth the median distance of all pairs of both sets; the p-value comes from
    permutations (Gretton et al., JMLR 13, 2012). The bandwidth doesn't depend on the assignment of vectors to sets, so
    the test is exact for independent vectors: under the null hypothesis p ≤ α in at most a share α of cases.
    """
    n, m = len(reference), len(recent)
    if min(n, m) < MIN_VECTORS:
        return None
    together = np.concatenate([reference, recent]).astype(np.float64)
    squares = (together**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * together @ together.T, 0.0)
    bandwidth = float(np.sqrt(np.median(distances[np.triu_indices(n + m, 1)])))
    if bandwidth <= _SAME:
        return MmdResult(mmd2=0.0, bandwidth=0.0, p_value=1.0, permutations=permutations)
    kernel = np.exp(-distances / (2 * bandwidth**2))
    np.fill_diagonal(kernel, 0.0)
    random = np.random.default_rng(seed)
    first = np.zeros((permutations + 1, n + m))
    first[0, :n] = 1.0
    for row in first[1:]:
        row[random.permutation(n + m)[:n]] = 1.0
    # Sums of the kernel within the first set, between both sets, and within the second.
    sums = first @ kernel
    within_first = (sums * first).sum(axis=1)
    between = (sums * (1 - first)).sum(axis=1)
    within_second = kernel.sum() - within_first - 2 * between
    mmd2 = within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2 * between / (n * m)
    as_large = int((mmd2[1:] >= mmd2[0] - _TINY).sum())
    return MmdResult(
        mmd2=float(mmd2[0]),
        bandwidth=bandwidth,
        p_value=(1 + as_large) / (permutations + 1),
        permutations=permutations,
    )


def find_novel(
    reference: NDArray[np.float32], recent: NDArray[np.float32], *, limit: int
) -> list[NovelVector]:
    """Return the recent unit vectors that are farthest from the reference, farthest first; none without a reference."""
    if not len(reference) or not len(recent):
        return []
    nearest = (recent @ reference.T).max(axis=1)
    order = np.argsort(nearest, kind="stable")[:limit]
    return [NovelVector(row=int(row), nearest=float(nearest[row])) for row in order]
