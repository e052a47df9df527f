"""A platform on an external PostgreSQL and MLflow: it scales, and sends its metrics, logs and traces elsewhere."""

from collections.abc import Iterator

import pytest

from tests.support.collector import Collector, collector
from tests.support.live import LivePlatform, live_platform
from tests.support.postgres import TestServer


@pytest.fixture(scope="package")
def receiver() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="package")
def watched(receiver: Collector, server: TestServer, mlflow_url: str) -> Iterator[LivePlatform]:
    with (
        server.database() as database,
        live_platform(
            DATABASE_URL=database,
            MLFLOW_TRACKING_URI=mlflow_url,
            VALENCE_ENCODER_CPUS="0.3",
            VALENCE_ENCODER_DOWNSCALE_SECONDS="2",
            VALENCE_ENCODER_MAX_REPLICAS="2",
            VALENCE_ENCODER_TARGET_ONGOING="0.5",
            VALENCE_ENCODER_UPSCALE_SECONDS="1",
            VALENCE_INGRESS_MAX_ONGOING="30",
            VALENCE_INGRESS_REPLICAS="2",
            VALENCE_LOG_LEVEL="debug",
            VALENCE_METRICS_OPEN="1",
            VALENCE_OTLP_ENDPOINT=receiver.url,
        ) as platform,
    ):
        yield platform
