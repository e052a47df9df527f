"""The supervisor's two children: one makes sure that the first models exist, one runs Ray and Serve.

Both end with their supervisor. The second ends by itself when a process of Ray dies, to be started afresh.
"""

import ctypes
import os
import signal
import sys
import threading
import time

import psutil
import structlog

from registry.errors import NotRegistered, RegistryError
from serving.logs import configure_logging
from serving.settings import Settings

log = structlog.get_logger(__name__)

_APPLICATION = "valence"
_RAY_CORE = ("gcs_server", "raylet")
_PR_SET_PDEATHSIG = 1


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def models(settings: Settings) -> None:
    """Register the first versions, unless they are."""
    from registry.bootstrap import bootstrap
    from serving.app import registry_of

    bootstrap(registry_of(settings), space=settings.space, model=settings.model, work=settings.home / "build")


def serve(settings: Settings, ended: threading.Event) -> int:
    """Run Ray and the application until told to end (0) or until a process of Ray dies (1)."""
    from serving import cluster

    cluster.start(settings)
    # Ray has set handlers of its own, under which a signal would end this process before it has drained.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    core = _core_processes() if settings.ray_address is None else []
    try:
        _deploy(settings, ended)
        log.info("stage.serving", port=settings.port)
        while not ended.wait(0.5):
            gone = [
                process.pid for process in core if not process.is_running() or process.status() == "zombie"
            ]
            if gone:
                log.error("ray.died", pids=gone)
                # What is left of Ray dies with this process; asking it to drain would wait for the dead.
                os._exit(1)
        return 0
    finally:
        cluster.stop(settings)


def _deploy(settings: Settings, ended: threading.Event) -> None:
    from ray import serve

    from serving.app import build, registry_of

    registry = registry_of(settings)
    while not ended.is_set():
        try:
            record = registry.space_encoder(settings.space)
        except NotRegistered:
            ended.wait(0.3)
        except RegistryError as error:
            log.warning("registry.unreachable", error=str(error))
            ended.wait(2)
        else:
            serve.run(build(record, settings), name=_APPLICATION, route_prefix="/")
            return


def _core_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name() in _RAY_CORE]


def main() -> int:
    """`models` or `serve`."""
    end_with_parent()
    settings = Settings()
    configure_logging(settings.log_level)
    if sys.argv[1:] == ["models"]:
        models(settings)
        return 0
    ended = threading.Event()
    started = time.monotonic()
    status = serve(settings, ended)
    log.info("stage.ended", seconds=time.monotonic() - started)
    return status


if __name__ == "__main__":
    sys.exit(main())
