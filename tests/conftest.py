"""What every test may ask for: asyncio as the backend, a real PostgreSQL with one database a test, a real MLflow."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.postgres import TestServer, running_server
from tests.support.tracking import tracking_server

# For a while by hand: `pytest --hypothesis-profile=long tests/integration/db/embeddings/test_interleavings.py`.
settings.register_profile("long", max_examples=100, stateful_step_count=40, deadline=None, print_blob=True)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[TestServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def url(server: TestServer) -> Iterator[str]:
    with server.database() as fresh:
        yield fresh


@pytest.fixture(scope="session")
def mlflow_url() -> Iterator[str]:
    with tracking_server() as url:
        yield url
