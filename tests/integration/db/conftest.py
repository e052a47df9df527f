"""One open `Database` a test, on a migrated database of its own."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from db.connection.engine import Database
from db.schema.roles import ensure_roles
from tests.support.postgres import TestServer, opened
from tests.support.repository_tour import tour
from tests.support.role_urls import LOGINS, Ways


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with opened(url) as ready:
        yield ready


@pytest.fixture
def ways(server: TestServer, url: str) -> Ways:
    """A database that is in use, and the roles to it."""

    async def use() -> None:
        async with opened(url) as database:
            await tour(database)

    asyncio.run(use())
    ensure_roles(url, LOGINS)
    return Ways(server, url)
