"""A platform whose versions, experiments and spaces change; each test leaves version 3 as the champion."""

from collections.abc import Iterator

import pytest

from tests.support.live import LivePlatform, live_platform


@pytest.fixture(scope="package")
def platform() -> Iterator[LivePlatform]:
    with live_platform(
        # No test's encoder is stopped, and all of them fit.
        VALENCE_ENCODER_GRACE_SECONDS="3600",
        VALENCE_ENCODER_CPUS="0.2",
        VALENCE_EVALUATION_TEXTS="200",
        # The joint model takes longer than a lexicon, which the gates' defaults wouldn't allow.
        VALENCE_GATE_LATENCY_RATIO="off",
        VALENCE_JUDGE_SECONDS="0.5",
    ) as live:
        yield live
