"""The repositories twice: fakes, and the real ones over a migrated database."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes.store import FakeStore
from tests.support.postgres import SPACE, open_database
from tests.support.repositories import Repositories, fake_repositories, stored_repositories


@pytest.fixture(params=["fake", "postgres"])
async def repositories(request: pytest.FixtureRequest) -> AsyncIterator[Repositories]:
    if request.param == "fake":
        yield fake_repositories(FakeStore())
        return
    async with open_database(request.getfixturevalue("url")) as database:
        repositories = stored_repositories(database)
        await repositories.spaces.ensure_live(SPACE)
        yield repositories
