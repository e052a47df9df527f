"""The agreement of vectors with those of an embedding space."""

import numpy as np
from numpy.typing import NDArray


def mean_and_worst_cosine(
    vectors: NDArray[np.float32], reference: NDArray[np.float32]
) -> tuple[float, float]:
    """Return the mean and the smallest cosine of unit vectors [n, d] to their references [n, d]."""
    cosines = (vectors * reference).sum(axis=1)
    return float(cosines.mean()), float(cosines.min())
