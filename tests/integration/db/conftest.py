"""One open `Database` a test, on a migrated database of its own."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from db.connection.engine import Database
from db.schema.roles import ensure_roles
from tests.support.postgres import TestServer, open_database
from tests.support.repository_tour import use_every_repository
from tests.support.role_urls import LOGINS, RoleUrls


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with open_database(url) as ready:
        yield ready


@pytest.fixture
def role_urls(server: TestServer, url: str) -> RoleUrls:
    """Return the URLs of the roles to a database that is in use."""

    async def use() -> None:
        async with open_database(url) as database:
            await use_every_repository(database)

    asyncio.run(use())
    ensure_roles(url, LOGINS)
    return RoleUrls(server, url)
