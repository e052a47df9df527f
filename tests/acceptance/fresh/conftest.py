"""One live platform a session for the acceptance tests that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.support.live import LivePlatform, live_platform


@pytest.fixture(scope="session")
def live() -> Iterator[LivePlatform]:
    with live_platform(fresh=True) as platform:
        yield platform
