"""The imports and the environment of the processes."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.deployments.cluster import build_environment, keep_run_folder, make_run_folder
from serving.settings import Settings

SERVING = (
    "serving.deployments.app",
    "serving.deployments.ingress_services",
    "serving.api",
    "serving.control.reconciler",
    "serving.inference.encoder",
    "serving.inference.replica",
    "serving.inference.heads",
)


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (", ".join(SERVING), "torch transformers onnxruntime mlflow sentence_transformers"),
        ("serving.deployments.existing_cluster", "torch ray mlflow openvino"),
        ("serving.standalone.supervisor", "torch ray mlflow fastapi openvino"),
        ("serving.standalone.launcher, serving.cli", "torch ray mlflow fastapi sqlalchemy numpy"),
    ],
)
def test_a_process_imports_only_what_it_needs(modules: str, heavy: str) -> None:
    script = f"import sys, {modules}; print(*(set({heavy.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_ray_of_our_own_is_private_and_on_loopback(tmp_path: Path) -> None:
    names = build_environment(Settings(home=tmp_path, haproxy="on"))
    assert names["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    token = Path(names["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent == tmp_path
    assert names["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] == "1"
    for name in ("SOCKET_PATH", "METRICS_SOCKET_PATH", "SERVER_STATE_FILE", "CONFIG_FILE_LOC"):
        assert Path(names[f"RAY_SERVE_HAPROXY_{name}"]).is_relative_to(make_run_folder(tmp_path))
    assert build_environment(Settings(home=tmp_path, haproxy="on"))["RAY_AUTH_TOKEN_PATH"] == str(token)


def test_a_cluster_that_is_there_keeps_its_own_addresses_and_token(tmp_path: Path) -> None:
    names = build_environment(Settings(home=tmp_path, ray_address="auto", haproxy="off"))
    assert "RAY_AUTH_TOKEN_PATH" not in names
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in names
    assert names["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


def test_a_run_folder_that_somebody_else_has_made_gives_way_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr("serving.deployments.cluster._FOLDER_NAMES", 3)
    try:
        for make in (lambda path: path.symlink_to(tmp_path), lambda path: path.write_text("mine")):
            folder = make_run_folder(tmp_path)
            assert folder not in taken
            folder.rmdir()
            make(folder)
            taken.append(folder)
        last = make_run_folder(tmp_path)
        assert make_run_folder(tmp_path) == last
        last.rmdir()
        last.symlink_to(tmp_path)
        taken.append(last)
        with pytest.raises(PermissionError, match="belong to others: remove them"):
            make_run_folder(tmp_path)
    finally:
        for path in taken:
            path.unlink()


def test_a_run_folder_is_locked_against_cleaners_and_gone_afterwards(tmp_path: Path) -> None:
    with keep_run_folder(tmp_path):
        folder = make_run_folder(tmp_path)
        (folder / "h").mkdir()
        other = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
    assert not folder.exists()
