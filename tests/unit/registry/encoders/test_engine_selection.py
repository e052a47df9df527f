"""The choice of an engine, and the check of vectors against a space."""

import numpy as np
import pytest

from registry.bundles.manifest_schema import Engine
from registry.encoders.engine_selection import (
    SPACE_COSINE_MEAN,
    SPACE_COSINE_WORST,
    Run,
    check_space,
    select_engine,
)
from registry.encoders.int8 import Inputs
from registry.errors import OutOfSpace, RegistryError


def unit(angles: list[float]) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_vectors_near_the_space_s_own_keep_to_it() -> None:
    angles = [0.0, 1.0, 2.0]
    assert check_space("same", unit(angles), unit(angles)) == {"cosine_mean": 1.0, "cosine_worst": 1.0}


def test_mean_worst_and_nan_each_refuse() -> None:
    reference = unit([0.0] * 100)
    all_off = unit([float(np.arccos(SPACE_COSINE_MEAN - 0.01))] * 100)
    one_off = unit([0.0] * 99 + [float(np.arccos(SPACE_COSINE_WORST - 0.01))])
    for vectors in (all_off, one_off, np.full_like(reference, np.nan)):
        with pytest.raises(OutOfSpace, match="strayed leaves its space"):
            check_space("strayed", vectors, reference)
    assert issubclass(OutOfSpace, RegistryError)


def test_int8_serves_only_where_it_saves_time() -> None:
    def busy(seconds: float) -> Run:
        def run(_: Inputs) -> tuple[np.ndarray, np.ndarray]:
            nonlocal spent
            spent += seconds
            return unit([0.0]), unit([0.0])

        return run

    spent = 0.0
    runs = {Engine.INT8: busy(0.004), Engine.INT8_PER_TOKEN: busy(0.002), Engine.FP32: busy(0.006)}
    assert select_engine(runs, lambda: spent) is Engine.INT8_PER_TOKEN
    assert select_engine(runs | {Engine.FP32: busy(0.001)}, lambda: spent) is Engine.FP32
