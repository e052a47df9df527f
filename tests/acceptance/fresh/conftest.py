"""A fresh installation, which builds its encoders itself, in a folder of an odd name and an old locale."""

from collections.abc import Iterator

import pytest

from tests.support.live import LivePlatform, keep_encoders, live_platform


@pytest.fixture(scope="package")
def live() -> Iterator[LivePlatform]:
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "VALENCE_CORS_ORIGINS": "https://shop.example.org"}
    with live_platform(fresh=True, name="a home, ü", **odd) as platform:
        yield platform
        keep_encoders(platform.home)
