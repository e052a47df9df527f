"""A Ray cluster of several nodes on one machine: a head without work and two workers, each with a raylet of its own.

Owns those processes. What a node's replicas need to know stands in its environment, as it would in a pod's.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from db.databases import beside
from db.embedded import EmbeddedPostgres
from serving.cluster import environment, free_port, run_folder
from serving.settings import Settings
from serving.stores import DATABASE, REGISTRY_SUFFIX
from tests.support.live import LivePlatform, unstarted_platform

WORKERS = 2
CPUS = 2

_START_SECONDS = 60.0
_END_SECONDS = 20.0
_OBJECTS = 100 * 2**20
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)


@contextmanager
def worker_nodes() -> Iterator[LivePlatform]:
    """A platform on such a cluster, with an ingress and an encoder replica for each worker."""
    port = free_port()
    with (
        unstarted_platform(
            RAY_ADDRESS=f"127.0.0.1:{port}",
            VALENCE_ENCODER_MIN_REPLICAS=str(WORKERS),
            VALENCE_ENCODER_MAX_REPLICAS=str(WORKERS),
            VALENCE_INGRESS_REPLICAS=str(WORKERS),
            **_LOOPBACK,
        ) as platform,
        ExitStack() as stack,
    ):
        EmbeddedPostgres(platform.home).initialise()
        names = _names(platform)
        stack.enter_context(_node(names, platform.home, "--head", f"--port={port}", "--num-cpus=0"))
        _wait_for(platform, 1)
        for _ in range(WORKERS):
            stack.enter_context(
                _node(names, platform.home, f"--address=127.0.0.1:{port}", f"--num-cpus={CPUS}")
            )
        _wait_for(platform, 1 + WORKERS)
        platform.up()
        yield platform
        platform.down()


def raylet_of_an_encoder(platform: LivePlatform) -> list[psutil.Process]:
    """The raylet that started an encoder replica: its worker node's."""
    replicas = platform.named("ServeReplica:encoder-")
    return [parent for replica in replicas[:1] if (parent := replica.parent()) is not None]


def _names(platform: LivePlatform) -> dict[str, str]:
    settings = Settings(home=platform.home, ray_address=platform.settings["RAY_ADDRESS"], drain_seconds=1)
    url = EmbeddedPostgres(platform.home).url(DATABASE)
    stores = {"DATABASE_URL": url, "MLFLOW_TRACKING_URI": beside(url, REGISTRY_SUFFIX)}
    return platform.environment() | environment(settings) | stores | _LOOPBACK


@contextmanager
def _node(names: dict[str, str], home: Path, *arguments: str) -> Iterator[None]:
    ports = [f"--{name}={free_port()}" for name in _PORTS]
    head = (
        [f"--temp-dir={run_folder(home) / 'ray'}", "--include-dashboard=false"]
        if "--head" in arguments
        else []
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1"),
            *("--disable-usage-stats", f"--object-store-memory={_OBJECTS}", *head, *ports, *arguments),
        ],
        env={name: value for name, value in names.items() if name != "RAY_ADDRESS"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        _, alive = psutil.wait_procs(
            [*children, psutil.Process(process.pid)] if children else [], _END_SECONDS
        )
        for each in alive:
            each.kill()
        process.wait()


def _wait_for(platform: LivePlatform, count: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while sum(_is_raylet(process) for process in platform.processes()) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not {count} nodes after {_START_SECONDS:.0f} s")
        time.sleep(0.2)


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return Path(process.exe()).name == "raylet"
    except psutil.Error:
        return False
