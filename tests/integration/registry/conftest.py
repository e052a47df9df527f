"""One tiny encoder bundle a session, built like the real one, and a registry in a separate database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from db.connection.databases import ensure_sibling
from registry.bundles.bundle import Bundle
from registry.encoders.export import build_encoder
from registry.encoders.sources import SentenceEncoderSource
from registry.store.model_registry import ModelRegistry
from tests.support.postgres import TestServer
from tests.support.tiny import sentences, tiny_source


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoderSource:
    return tiny_source(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def encoder_bundle(source: SentenceEncoderSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target: Path = tmp_path_factory.mktemp("encoders") / "tiny"
    return build_encoder(source, target, calibration=sentences(32))


@pytest.fixture(scope="session")
def database_uri(server: TestServer) -> Iterator[str]:
    with server.database() as url:
        yield ensure_sibling(url, "_mlflow")


@pytest.fixture(scope="session")
def database_store(database_uri: str, tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return ModelRegistry(database_uri, artifact_root=tmp_path_factory.mktemp("artifacts"))
