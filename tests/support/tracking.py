"""MLflow's own tracking server for tests: a process that stores artifacts and serves them over HTTP."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.support.clock import eventually
from tests.support.ports import find_free_port


@contextmanager
def tracking_server() -> Iterator[str]:
    """Run a server over its own files; yield its URL."""
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="valence-mlflow-") as folder:
        root = Path(folder)
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--workers", "1"),
                *("--serve-artifacts", "--artifacts-destination", str(root / "artifacts")),
            ],
            env=os.environ
            | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
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
            # A test may have ended it already.
            with suppress(ProcessLookupError):
                os.killpg(server.pid, 9)
            server.wait()
