"""Faults of processes: killed, stopped for a while, out of memory. Only the platform's own processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

from tests.support.faults.cgroup import limited
from tests.support.faults.clients import Clients
from tests.support.faults.fault import Injury
from tests.support.faults.ledger import Ledger
from tests.support.live import LivePlatform

Part = Callable[[LivePlatform], Sequence[psutil.Process]]

_DEATH_SECONDS = 10.0
_NO_MEMORY = "65536"


def titled(part: str) -> Part:
    """Return the processes with this in their command line, as Ray titles its own."""
    return lambda platform: platform.find_processes(part)


def program(name: str, argument: str = "") -> Part:
    """Return the processes of a program, with this among the arguments."""
    return lambda platform: [
        process
        for process in platform.find_processes(argument)
        if process.is_running() and process.name() == name
    ]


ENCODER = titled("ServeReplica:encoder-")
INGRESS = titled("ServeReplica:valence:ingress")
CONTROL = titled("ServeReplica:valence:control")
CONTROLLER = titled("ServeController")
HAPROXY = program("haproxy")
HAPROXY_MANAGER = titled("HAProxyManager")
POSTGRES = program("postgres")


def mlflow_server(platform: LivePlatform) -> list[psutil.Process]:
    """Return the processes of the suite's MLflow server that the platform uses."""
    port = platform.settings["MLFLOW_TRACKING_URI"].rpartition(":")[2]
    servers = [child for child in psutil.Process().children() if port in child.cmdline()]
    return [*servers, *(child for server in servers for child in server.children(recursive=True))]


def postmaster(platform: LivePlatform) -> list[psutil.Process]:
    """Return PostgreSQL's first process."""
    return [min(POSTGRES(platform), key=lambda process: process.create_time())]


def killed(part: Part) -> Injury:
    """`kill -9` all such processes."""

    @contextmanager
    def hurt(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
        for process in found(part, platform):
            process.kill()
        yield

    return hurt


def stalled(part: Part) -> Injury:
    """Stop the processes and continue them afterwards: meanwhile they are alive, but silent."""

    @contextmanager
    def hurt(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
        stopped = found(part, platform)
        for process in stopped:
            process.suspend()
        try:
            yield
        finally:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    return hurt


@contextmanager
def out_of_memory(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """Give the encoder replica no more memory, so that the kernel kills it when it needs a page."""
    replicas = found(ENCODER, platform)[:1]
    with limited("memory", {"memory.limit_in_bytes": _NO_MEMORY}, replicas):
        _, alive = psutil.wait_procs(replicas, timeout=_DEATH_SECONDS)
        if alive:
            raise RuntimeError("the kernel did not end the replica")
        # A group can be removed only after the kernel has removed its dead processes.
        time.sleep(0.2)
    yield


def crowd(count: int) -> Injury:
    """Add many more clients than the platform can answer."""

    @contextmanager
    def hurt(platform: LivePlatform, ledger: Ledger) -> Iterator[None]:
        with Clients(platform, count, ledger):
            yield

    return hurt


def found(part: Part, platform: LivePlatform) -> Sequence[psutil.Process]:
    """Return the processes to damage; if there are none, the fault itself is wrong."""
    if not (processes := part(platform)):
        raise RuntimeError("there is no such process to hurt")
    return processes
