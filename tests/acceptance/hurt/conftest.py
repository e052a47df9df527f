"""A platform on its defaults that tests damage; each leaves it able to recover, and the last takes it down."""

from collections.abc import Iterator

import pytest

from tests.support.live import LivePlatform, live_platform


@pytest.fixture(scope="package")
def hurt() -> Iterator[LivePlatform]:
    with live_platform() as platform:
        yield platform
