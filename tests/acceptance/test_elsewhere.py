"""The same platform on a PostgreSQL and an MLflow that somebody else runs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.cluster import free_port
from tests.support.clock import eventually
from tests.support.live import live_platform
from tests.support.postgres import TestServer


@pytest.fixture
def mlflow() -> Iterator[str]:
    """The URL of a tracking server that keeps artifacts itself."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="valence-mlflow-") as folder:
        where = Path(folder)
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{where}/mlflow.db", "--workers", "1"),
                *("--artifacts-destination", str(where / "artifacts")),
            ],
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        def up() -> bool:
            assert server.poll() is None
            try:
                return httpx.get(f"{url}/health").status_code == httpx.codes.OK
            except httpx.HTTPError:
                return False

        try:
            eventually(up, within=90, what="MLflow answers")
            yield url
        finally:
            os.killpg(server.pid, 9)
            server.wait()


def test_it_runs_on_an_external_database_and_registry(server: TestServer, mlflow: str) -> None:
    with (
        server.database() as database,
        live_platform(DATABASE_URL=database, MLFLOW_TRACKING_URI=mlflow) as platform,
        platform.client() as client,
    ):
        assert not (platform.home / "postgres").exists()
        made = client.post("/v1/predict", json={"text": "The battery lasts for days, I love it!"})
        assert (made.status_code, made.json()["sentiment"]) == (201, "positive")
        found = client.post("/v1/similar", json={"text": "great battery life", "k": 1}).json()
        assert found["results"][0]["text_id"] == made.json()["text_id"]
        versions = client.get("/v1/models/sentiment").json()["versions"]
        assert [version["state"] for version in versions] == ["ready", "ready"]
