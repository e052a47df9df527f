"""One tiny encoder bundle a session, built as the real one is."""

from pathlib import Path

import pytest

from registry.bundle import Bundle
from registry.export import EncoderSource, build_encoder
from tests.support.tiny import sentences, tiny_source


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> EncoderSource:
    return tiny_source(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def encoder_bundle(source: EncoderSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target: Path = tmp_path_factory.mktemp("encoders") / "tiny"
    return build_encoder(source, target, calibration=sentences(32))
