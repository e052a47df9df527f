"""One live platform a session for the acceptance tests that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.support.live import LivePlatform, live_platform


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    home = tmp_path_factory.mktemp("live") / "home"
    # Of mode 700 as pytest makes it, its root would keep the database's own user out.
    tmp_path_factory.getbasetemp().chmod(0o755)
    with live_platform(home) as platform:
        yield platform
