"""A fresh installation, which builds its encoders itself."""

from collections.abc import Iterator

import pytest

from tests.support.live import LivePlatform, keep_encoders, live_platform


@pytest.fixture(scope="package")
def live() -> Iterator[LivePlatform]:
    with live_platform(fresh=True, VALENCE_CORS_ORIGINS="https://shop.example.org") as platform:
        yield platform
        keep_encoders(platform.home)
