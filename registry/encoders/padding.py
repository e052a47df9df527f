"""Padding of rows of different lengths to one array."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def pad_rows(rows: Sequence[NDArray[Any]], dtype: DTypeLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return n rows [t_i, …] as one array [n, max t, …], zero where the mask, bool [n, max t], is False."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    padded = np.zeros((*mask.shape, *rows[0].shape[1:]), dtype=dtype)
    padded[mask] = np.concatenate(rows)
    return padded, mask
