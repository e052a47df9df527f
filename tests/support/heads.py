"""Heads on the tiny encoder: a working one, and tensors for broken ones."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from registry.bundles.bundle import LABELS, Bundle, BundleKind, Manifest
from registry.bundles.manifest_schema import HEAD_WEIGHTS
from tests.support.tiny import DIMENSIONS, TINY_SPACE

# States of two layers, concatenated.
_STATES = 2 * DIMENSIONS
_WIDTH = 16


def weights(*, states: int = _STATES, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return random tensors, the same for a seed; matrices are [in, out]."""
    random = np.random.default_rng(seed)
    shapes = {
        "project.weight": (states, _WIDTH),
        "project.bias": (_WIDTH,),
        "norm.weight": (_WIDTH,),
        "norm.bias": (_WIDTH,),
        "query.weight": (_WIDTH, 4),
        "hidden.weight": (2 * _WIDTH, _WIDTH),
        "hidden.bias": (_WIDTH,),
        "out.weight": (_WIDTH, len(LABELS)),
        "out.bias": (len(LABELS),),
    }
    return {name: random.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def head(
    folder: Path, encoder: str, tensors: dict[str, NDArray[Any]] | None = None, *, seed: int = 0
) -> Bundle:
    """Write a sealed head bundle on the encoder with this digest."""
    folder.mkdir(parents=True)
    save_file(tensors or weights(seed=seed), folder / HEAD_WEIGHTS)
    manifest = Manifest(
        kind=BundleKind.HEAD, name=f"tiny head {seed}", encoder=encoder, space=TINY_SPACE, labels=LABELS
    )
    return Bundle.seal(folder, manifest)
