"""Whether two sets of vectors come from one distribution, and which vectors are new. Pure: vectors in, figures out."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Fewer vectors than these on either side say nothing.
MIN_VECTORS: Final = 20
PERMUTATIONS: Final = 499
_TINY: Final = 1e-12
# Vectors this near are the same, but for rounding.
_SAME: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class MmdResult:
    """The squared maximum mean discrepancy, unbiased (so that it may fall below 0), and how likely it is by chance.

    `bandwidth` is that of the Gaussian kernel; the least `p_value` is 1 / (`permutations` + 1).
    """

    mmd2: float
    bandwidth: float
    p_value: float
    permutations: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NovelVector:
    """A row of the recent vectors and the cosine to the nearest vector of the reference."""

    row: int
    nearest: float


def compute_mmd(
    reference: NDArray[np.float32],
    recent: NDArray[np.float32],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> MmdResult | None:
    """The MMD² of two sets [n, d] and [m, d] of one space; None if either has fewer than `MIN_VECTORS`.

    Gaussian kernel, its bandwidth the median distance of all pairs of both sets; p-value by permutations (Gretton et
    al., JMLR 13, 2012). As nothing depends on which set a vector is of, the test is exact for independent vectors:
    under the null p ≤ α in a share α of cases at most.
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
    # What is inside the first set, and what is between both; the rest is inside the second.
    towards = first @ kernel
    inside = (towards * first).sum(axis=1)
    between = (towards * (1 - first)).sum(axis=1)
    outside = kernel.sum() - inside - 2 * between
    found = inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2 * between / (n * m)
    beyond = int((found[1:] >= found[0] - _TINY).sum())
    return MmdResult(
        mmd2=float(found[0]),
        bandwidth=bandwidth,
        p_value=(1 + beyond) / (permutations + 1),
        permutations=permutations,
    )


def find_novel(
    reference: NDArray[np.float32], recent: NDArray[np.float32], *, limit: int
) -> list[NovelVector]:
    """The recent unit vectors farthest from all of the reference, the farthest first; none without a reference."""
    if not len(reference) or not len(recent):
        return []
    nearest = (recent @ reference.T).max(axis=1)
    order = np.argsort(nearest, kind="stable")[:limit]
    return [NovelVector(row=int(row), nearest=float(nearest[row])) for row in order]
