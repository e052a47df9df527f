"""`valence mlflow`: MLflow's own server over the platform's embedded database, in a separate process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from mlflow import MlflowClient

from db.connection.databases import ensure_sibling
from registry.store.builtin_versions import open_builtin
from registry.store.model_registry import CHAMPION, MODEL, ModelRegistry
from serving.core.connections import DATABASE, REGISTRY_SUFFIX
from serving.errors import Invalid
from serving.operations.mlflow_ui import TrackingServer
from tests.support.clock import eventually
from tests.support.ports import find_free_port
from tests.support.postgres import TestServer


@pytest.fixture(scope="module")
def registry(server: TestServer) -> ModelRegistry:
    """Return the registry that the home's platform would have."""
    home = server.server.home
    uri = ensure_sibling(server.server.create_database(DATABASE), REGISTRY_SUFFIX)
    store = ModelRegistry(uri, artifact_root=home / "artifacts")
    store.register(open_builtin("lexicon"))
    store.register(open_builtin("head"), alias=CHAMPION)
    return store


def valence(home: Path, *arguments: str, **names: str) -> subprocess.Popen[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("VALENCE_", "MLFLOW_"))
    }
    return subprocess.Popen(
        [sys.executable, "-c", "from serving.cli import main; main()", *arguments],
        env=inherited | {"VALENCE_HOME": str(home), **names},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def run_ui(home: Path, port: int, **names: str) -> Iterator[subprocess.Popen[str]]:
    process = valence(home, "mlflow", "--port", str(port), **names)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"http://127.0.0.1:{port}\n", process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str], number: int) -> None:
    """End the process by a signal: it exits cleanly with all its workers, and the port is free."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert len(family) > 1
    process.send_signal(number)
    assert process.wait(30) == 0
    eventually(
        lambda: not any(each.is_running() and each.status() != "zombie" for each in family),
        within=5,
        what="its workers are gone",
    )


def test_runs_versions_aliases_and_artifacts_are_seen_through_it(
    server: TestServer, registry: ModelRegistry
) -> None:
    port = find_free_port()
    with run_ui(server.server.home, port) as process:
        url = f"http://127.0.0.1:{port}"
        client = MlflowClient(tracking_uri=url, registry_uri=url)
        champion = client.get_model_version_by_alias(MODEL, CHAMPION)
        assert champion.version == registry.champion().version
        run = client.get_run(champion.run_id)
        assert run.data.metrics["rated.accuracy"] == registry.champion().metrics["rated.accuracy"]
        assert {"data", "code"} <= run.data.params.keys()
        versions = client.search_model_versions(f"name = '{MODEL}'")
        assert {version.version for version in versions} == {"1", "2"}

        page = httpx.get(f"{url}/")
        assert page.status_code == 200
        assert "<title>MLflow</title>" in page.text
        assert {file.path for file in client.list_artifacts(champion.run_id, "bundle")} >= {
            "bundle/manifest.json",
            "bundle/head.safetensors",
        }
        shown = httpx.get(
            f"{url}/get-artifact", params={"run_id": champion.run_id, "path": "bundle/manifest.json"}
        )
        assert shown.json()["digest"] == registry.champion().digest

        client.set_registered_model_alias(MODEL, "challenger", "1")
        assert registry.version(MODEL, "1").aliases == ("challenger",)
        through = ModelRegistry(url, artifact_root=Path("/proc/nowhere"))
        assert through.fetch(through.champion(), Path("/proc/nowhere")) == registry.fetch(
            registry.champion(), Path("/proc/nowhere")
        )
        foreign = httpx.get(
            f"{url}/ajax-api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": "evil.example"}
        )
        assert foreign.status_code == 403
        end(process, signal.SIGINT)


def test_it_ends_on_sigterm_and_a_taken_port_is_reported_in_one_line(
    server: TestServer, registry: ModelRegistry
) -> None:
    port = find_free_port()
    with run_ui(server.server.home, port) as process:
        second = valence(server.server.home, "mlflow", "--port", str(port))
        _, err = second.communicate(timeout=60)
        assert second.returncode == 1
        assert err.startswith(f"valence: port {port} is taken")
        assert err.endswith("choose another with --port\n")
        assert err.count("\n") == 1
        end(process, signal.SIGTERM)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_its_workers_end_when_it_is_killed(server: TestServer, registry: ModelRegistry) -> None:
    with run_ui(server.server.home, find_free_port()) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        eventually(
            lambda: not any(each.is_running() and each.status() != "zombie" for each in family),
            within=15,
            what="its workers are gone",
        )


def test_password_of_a_named_database_is_in_no_command_line(tmp_path: Path) -> None:
    result = TrackingServer("postgresql://me:secret@db/x", artifacts=tmp_path, host="127.0.0.1", port=5000)
    assert not any("secret" in argument for argument in result._arguments())
    assert result._environment()["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert result._environment()["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_beyond_loopback_its_host_names_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="--allowed-hosts"):
        TrackingServer("sqlite://", artifacts=tmp_path, host="0.0.0.0", port=5000)
    result = TrackingServer(
        "sqlite://", artifacts=tmp_path, host="0.0.0.0", port=5000, allowed_hosts=("ml.example:5000",)
    )
    assert result._environment()["MLFLOW_SERVER_ALLOWED_HOSTS"] == "ml.example:5000"
    assert "http://ml.example:5000" in result._environment()["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"]
    assert result.url == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://mlflow.example:5000", "names a server that runs already: open http://mlflow.example:5000"),
        ("file:///tmp/mlruns", "names no database"),
        ("postgresql://nobody@127.0.0.1:9/x", "the database can't be reached: connection failed"),
    ],
)
def test_store_that_is_no_reachable_database_is_reported_in_one_line(
    tmp_path: Path, uri: str, reason: str
) -> None:
    process = valence(tmp_path, "mlflow", MLFLOW_TRACKING_URI=uri)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n"), reason in err) == (1, 1, True), err


def test_the_server_is_loaded_without_a_warning(tmp_path: Path) -> None:
    server = TrackingServer("sqlite://", artifacts=tmp_path, host="127.0.0.1", port=5000)
    result = subprocess.run(
        [sys.executable, "-c", "import mlflow.server.fastapi_app"],
        env=server._environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Warning" not in result.stderr
