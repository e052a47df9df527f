"""A real MLflow in PostgreSQL with a tiny encoder and a lexicon, and a real database of predictions."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from db.connection.databases import ensure_sibling
from db.connection.engine import Database
from registry.encoders.export import build_encoder
from registry.store.model_registry import ModelRegistry
from tests.support.postgres import TestServer, open_database
from tests.support.tiny import sentences, tiny_source


@pytest.fixture(scope="package")
def registry(server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRegistry]:
    folder = tmp_path_factory.mktemp("registry")
    with server.database() as url:
        registry = ModelRegistry(ensure_sibling(url, "_mlflow"), artifact_root=folder / "artifacts")
        source = tiny_source(folder / "source")
        registry.register_encoder(build_encoder(source, folder / "encoder", calibration=sentences(32)))
        yield registry


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with open_database(url) as ready:
        yield ready


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
