"""One open `Database` a test, on a migrated database of its own."""

from collections.abc import AsyncIterator

import pytest

from db.engine import Database
from tests.support.postgres import opened


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with opened(url) as ready:
        yield ready
