"""A bundle that an earlier release built is opened, verified and gives the vectors that it gave then."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import Engine
from serving.inference.engines.factory import open_encoder

DATA = Path(__file__).parents[3] / "data" / "e3a047c"
VECTORS: dict[str, Any] = json.loads((DATA / "vectors.json").read_text())


@pytest.mark.parametrize("engine", list(Engine), ids=str)
def test_an_old_encoder_bundle_gives_its_old_vectors(engine: Engine, tmp_path: Path) -> None:
    with tarfile.open(DATA / "tiny-encoder.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    encoder = open_encoder(Bundle.open(tmp_path), engine=engine)
    texts = VECTORS["texts"]
    result = np.zeros((len(texts), encoder.settings.dimensions), np.float32)
    for batch in encoder.run(texts):
        result[batch.rows] = batch.embedding
    # In int8, processors round differently.
    then = np.array(VECTORS["vectors"][engine.value]["v"], np.float32)
    assert (result * then).sum(axis=1) == pytest.approx(1.0, abs=1e-5 if engine is Engine.FP32 else 0.01)
