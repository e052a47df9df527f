"""The supervisor's two child processes: one registers the first models, the other runs Ray and Serve.

Both end with their supervisor. The second also ends when a process of Ray dies, and the supervisor restarts it.
"""

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import structlog

from registry.errors import NotRegistered, RegistryError
from registry.store.model_registry import ModelRegistry
from registry.store.records import EncoderRecord
from serving.core.home import Home
from serving.core.logs import configure_logging
from serving.core.subprocesses import end_with_parent
from serving.settings import Settings
from serving.standalone.state import REFUSED, ServeReport, StartSteps

if TYPE_CHECKING:
    from serving.deployments.carried_settings import CarriedSettings

log = structlog.get_logger(__name__)

_RAY_CORE = ("gcs_server", "raylet")
_LATER_NICENESS = 19


class DeployFailed(Exception):
    """Ray Serve has given up starting the application; the message says why."""


def register_models(settings: Settings) -> None:
    """Register the first versions that aren't registered, and write down the champion's encoder once there is one."""
    from registry.store.builtin_versions import bootstrap
    from serving.core.connections import build_registry

    registry, steps = build_registry(settings), StartSteps(settings.home)
    is_champion_ready = False

    def say(step: str) -> None:
        # Nobody waits for what is built after the champion's encoder.
        if not is_champion_ready:
            steps.write("models", step)

    def write_champion_encoder() -> None:
        nonlocal is_champion_ready
        encoder_file = Home(settings.home).champion_encoder(settings.space)
        draft = encoder_file.with_suffix(".new")
        draft.write_text(json.dumps(asdict(_first_encoder(registry, settings))))
        draft.replace(encoder_file)
        is_champion_ready = True
        steps.write("models", None)
        # The rest of the builds shall not slow down the requests that come now.
        os.nice(_LATER_NICENESS)

    bootstrap(
        registry,
        space=settings.space,
        model=settings.model,
        work=Home(settings.home).build,
        progress=say,
        on_champion_ready=write_champion_encoder,
    )


def run_serve(settings: Settings, ended: threading.Event, *, encoder_file: Path | None) -> int:
    """Run Ray and the application until a signal (return 0) or until a process of Ray dies (exit with 1).

    `ended` is set by a signal; `encoder_file` names the encoder, now or later; None asks the registry.
    """
    from serving.deployments import cluster

    # In threads, because the imports of a deployment take as long as the start of Ray.
    executor = ThreadPoolExecutor(2)
    encoder = executor.submit(_encoder, settings, ended, encoder_file)
    executor.submit(import_module, "serving.deployments.app")
    cluster.start(settings)
    _end_by_signals(ended)
    core = _core_processes()
    try:
        if (record := encoder.result()) is not None:
            _deploy(record, settings)
            _await_deployment(settings, core, ended)
        _watch(core, ended)
        return 0
    finally:
        cluster.stop(settings)


def run_serve_elsewhere(settings: Settings, ended: threading.Event, *, encoder_file: Path | None) -> int:
    """Run the application on the cluster of the settings, like `run_serve`; return `REFUSED` if it can't run there.

    Raises:
        OSError: no Ray answers.
    """
    from serving.deployments import existing_cluster
    from serving.deployments.carried_settings import CarriedSettings

    report = ServeReport(settings.home)
    try:
        existing_cluster.join(settings, report.note)
    except existing_cluster.ClusterRefused as refused:
        log.warning("cluster.refused", reason=str(refused))
        report.explain(str(refused))
        return REFUSED
    except OSError as error:
        report.explain(f"no Ray answers at {settings.ray_address}: {error}")
        raise
    _end_by_signals(ended)
    core = existing_cluster.find_processes()
    try:
        if (record := _encoder(settings, ended, encoder_file)) is not None:
            _deploy(record, settings, CarriedSettings.collect(settings, os.environ))
            _await_deployment(settings, core, ended)
        _watch(core, ended)
        return 0
    finally:
        existing_cluster.leave(settings)


def _end_by_signals(ended: threading.Event) -> None:
    # Ray sets handlers under which a signal would end this process before it has drained.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())


def _watch(core: list[psutil.Process], ended: threading.Event) -> None:
    while not ended.wait(0.5):
        _end_with(core)


def _end_with(core: list[psutil.Process]) -> None:
    """End this process if one of Ray's has died."""
    dead = [process.pid for process in core if not process.is_running() or process.status() == "zombie"]
    if dead:
        log.error("ray.died", pids=dead)
        # The rest of Ray dies with this process; draining would wait for the dead processes.
        os._exit(1)


def _deploy(record: EncoderRecord, settings: Settings, carried: "CarriedSettings | None" = None) -> None:
    """Start the encoder at once with the platform; the control would start it only after its own start."""
    from ray import serve
    from ray.serve.api import RunTarget

    from serving.control.pool import APPLICATION, build_run_target
    from serving.deployments.app import build_with
    from serving.deployments.encoder import encoder_application

    log.info("stage.deploying")
    StartSteps(settings.home).write("serve", "loading the encoder, the control and the ingress")
    serve.run_many(
        [
            build_run_target(record, encoder_application(record, settings, carried)),
            RunTarget(build_with(settings, carried), name=APPLICATION, route_prefix="/"),
        ],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _await_deployment(settings: Settings, core: list[psutil.Process], ended: threading.Event) -> None:
    """Wait until the application runs, and report meanwhile why its replicas don't start.

    Raises:
        DeployFailed: Serve has given up.
    """
    from ray import serve

    from serving.control.pool import APPLICATION, find_reason

    report, said = ServeReport(settings.home), None
    while not ended.wait(0.5):
        _end_with(core)
        applications = serve.status().applications
        status = applications[APPLICATION].status.value if APPLICATION in applications else None
        if status == "RUNNING":
            report.explain(None)
            log.info("stage.serving", port=settings.port)
            return
        if (reason := find_reason(applications)) is not None and reason != said:
            said = reason
            log.error("replica.failed", reason=reason)
            report.explain(reason)
        if status == "DEPLOY_FAILED":
            raise DeployFailed(said or applications[APPLICATION].message)


def _encoder(settings: Settings, ended: threading.Event, encoder_file: Path | None) -> EncoderRecord | None:
    """Wait for the first encoder to be registered, and return it; None if a signal comes first."""
    while encoder_file is not None:
        if encoder_file.exists():
            return EncoderRecord(**json.loads(encoder_file.read_text()))
        if ended.wait(0.1):
            return None
    from serving.core.connections import build_registry

    registry = build_registry(settings)
    while not ended.is_set():
        try:
            return _first_encoder(registry, settings)
        except NotRegistered:
            ended.wait(0.3)
        except RegistryError as error:
            log.warning("registry.unreachable", error=str(error))
            ended.wait(2)
    return None


def _first_encoder(registry: ModelRegistry, settings: Settings) -> EncoderRecord:
    """Return the champion's encoder, else that of the space. Raise NotRegistered until there is a champion."""
    champion = registry.champion(settings.model)
    if champion.encoder is not None:
        with suppress(NotRegistered):
            return registry.encoder(champion.encoder)
    return registry.space_encoder(settings.space)


def _core_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.name() in _RAY_CORE]


def main() -> int:
    """Run `models`, `serve` with the path of the file that names the encoder, or `leave`."""
    end_with_parent()
    settings = Settings()
    configure_logging(settings.log_level, process="stage", file=settings.log_file)
    match sys.argv[1:]:
        case ["models"]:
            register_models(settings)
            return 0
        case ["serve", *files]:
            run = run_serve if settings.ray_address is None else run_serve_elsewhere
            return run(settings, threading.Event(), encoder_file=Path(files[0]) if files else None)
        case ["leave"]:
            from serving.deployments import existing_cluster

            existing_cluster.clean_up(settings)
            return 0
        case _:
            raise SystemExit("python -m serving.standalone.processes models | serve [ENCODER_FILE] | leave")


if __name__ == "__main__":
    sys.exit(main())
