"""The supervisor of one machine: starts the database, the models and Serve, and restarts what dies.

Owns those processes and their state in the home. Imports neither Ray nor MLflow, so that it stays small, and never
touches a process that it did not start.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

import structlog
from pydantic import SecretStr

from db.connection.databases import ensure_sibling, require_own_session, sibling_url
from db.core.environment import forget_libpq_variables
from db.embedded.server import EmbeddedPostgres
from db.errors import DatabaseError
from db.schema import revisions
from serving.core.connections import DATABASE, REGISTRY_SUFFIX
from serving.core.home import Home
from serving.core.logs import configure_logging
from serving.core.proxies import bypass_proxies_for_loopback
from serving.deployments.cluster import build_environment, keep_run_folder
from serving.deployments.haproxy import fallback
from serving.settings import OF_THE_COMMAND_LINE, Settings
from serving.standalone.database_setup import set_up_database
from serving.standalone.log_file import LogFile
from serving.standalone.state import REFUSED, PlatformState, ServeReport, StartSteps

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.2
_ROTATE_SECONDS = 10.0
_KNOWN_MODELS_DELAY_SECONDS = 60.0
_LEAVE_SECONDS = 60.0
# As long as `valence up` waits.
_STAND_IN_SECONDS = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY_SECONDS = 0.5, 30.0, 60.0


class ChildProcess:
    """A process that is restarted when it ends, after a pause that doubles while it keeps ending."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], *, delay: float = 0) -> None:
        self._arguments = arguments
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = _FIRST_PAUSE
        self._not_before = time.monotonic() + delay

    def poll(self) -> int | None:
        """Start the process if it is due; return the exit status of one that has just ended, else None."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._not_before:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", *self._arguments],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                )
                self._started = now
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._process = None
        if now - self._started > _STEADY_SECONDS:
            self._pause = _FIRST_PAUSE
        self._not_before = now + self._pause
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        return status

    def stop(self, timeout: float) -> bool:
        """Terminate the process, kill it after `timeout` seconds, and return whether it ended well."""
        if self._process is None:
            return False
        self._process.terminate()
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        return status == 0


class Supervisor:
    """Keeps one home's platform running from `run` until a signal; what was acknowledged stays stored."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = PlatformState(settings.home)
        self._report = ServeReport(settings.home)
        self._ending = False
        self._refused = False
        self._fallback: subprocess.Popen[bytes] | None = None
        self._server: EmbeddedPostgres | None = None

    def run(self) -> int:
        """Start everything and keep it running; return 0 after a signal, 1 if it can't be started."""
        if not self._state.acquire():
            sys.stderr.write(f"valence: another platform runs in {self._settings.home}\n")
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        log.info("supervisor.started", home=str(self._settings.home))
        environment: dict[str, str] = {}
        serve: ChildProcess | None = None
        models: ChildProcess | None = None
        kept = ExitStack()
        try:
            kept.enter_context(keep_run_folder(self._settings.home))
            self._report.clear()
            StartSteps(self._settings.home).clear()
            self._state.write("starting the database and Ray")
            environment = self._build_environment()
            # Ray takes longer to start than the database, and needs it last.
            encoder_file = self._encoder_file()
            known = encoder_file is not None and encoder_file.exists()
            serve = ChildProcess(
                ["serving.standalone.processes", "serve", *([str(encoder_file)] if encoder_file else [])],
                environment,
            )
            serve.poll()
            self._prepare(environment)
            self._state.write("starting the models")
            # Models that were registered before need no check until the platform answers.
            models = ChildProcess(
                ["serving.standalone.processes", "models"],
                environment,
                delay=_KNOWN_MODELS_DELAY_SECONDS if known else 0,
            )
            self._watch(models, serve)
            self._state.write("stopping")
        except (DatabaseError, OSError, ValueError) as error:
            log.exception("start.failed")
            self._state.write("failed", error=str(error))
            return 1
        finally:
            if serve is not None and not serve.stop(self._settings.drain_seconds + 20):
                self._leave_cluster(environment)
            if models is not None:
                models.stop(1)
            self._stop_database()
            kept.close()
            self._state.release()
        return 0

    def _watch(self, models: ChildProcess, serve: ChildProcess) -> None:
        models_done = is_unserved = False
        log_file = LogFile(Home(self._settings.home).platform_log)
        next_look = 0.0
        while not self._ending:
            if time.monotonic() >= next_look:
                self._rotate(log_file)
                next_look = time.monotonic() + _ROTATE_SECONDS
            if not models_done and (status := models.poll()) is not None:
                models_done = status == 0
                if not models_done:
                    log.error("models.failed", status=status)
            if (status := serve.poll()) is not None:
                log.error("stage.ended", status=status)
                if status == REFUSED:
                    self._refused = True
                    raise ValueError(self._report.read()[1])
                # A full disk must not end the supervisor.
                with suppress(OSError):
                    self._state.write("restarting Ray")
                is_unserved = True
            if is_unserved:
                is_unserved = not self._stand_in()
            self._restart_database()
            time.sleep(_POLL_SECONDS)

    def _rotate(self, log_file: LogFile) -> None:
        """Bound the log of the home; a file that a setting names is its owner's to rotate."""
        if self._settings.log_file is not None or self._settings.log_mib == 0:
            return
        with suppress(OSError):
            log_file.rotate(self._settings.log_mib * 2**20)

    def _stand_in(self) -> bool:
        """Have requests refused, once nothing listens on the port, until something does; return whether it began."""
        if fallback.count_listeners(self._settings.port):
            return False
        command = fallback.build_command(
            self._settings.host, self._settings.port, keeper=os.getpid(), seconds=_STAND_IN_SECONDS
        )
        self._fallback = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, env=fallback.build_bare_environment()
        )
        return True

    def _build_environment(self) -> dict[str, str]:
        """Return the environment of the other processes; creates the database's files, but starts nothing."""
        settings = self._settings
        names = {name: value for name, value in os.environ.items() if name not in OF_THE_COMMAND_LINE}
        names |= build_environment(settings)
        names["VALENCE_HOME"] = str(settings.home)
        if settings.log_file is None:
            # The same file as the supervisor's, unless it runs in the foreground.
            log_file = Home(settings.home).platform_log
            log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            names["VALENCE_LOG_FILE"] = str(log_file)
        if settings.database_url is not None:
            names["DATABASE_URL"] = settings.database_url.get_secret_value()
        else:
            self._server = EmbeddedPostgres(settings.home, archive=settings.wal_archive)
            self._server.initialise()
            names["DATABASE_URL"] = self._server.url(DATABASE)
        if settings.mlflow_tracking_uri is None:
            names["MLFLOW_TRACKING_URI"] = sibling_url(
                settings.schema_url or names["DATABASE_URL"], REGISTRY_SUFFIX
            )
        return names

    def _prepare(self, environment: Mapping[str, str]) -> None:
        """Start the database, and bring it to the state that the first request needs."""
        if self._server is not None:
            self._server.start()
            self._server.create_database(DATABASE)
        direct = self._settings.schema_url or environment["DATABASE_URL"]
        if self._settings.mlflow_tracking_uri is None:
            require_own_session(direct, "MLflow")
            ensure_sibling(direct, REGISTRY_SUFFIX)
        revisions.upgrade(direct)
        database = {"database_url": SecretStr(environment["DATABASE_URL"])}
        asyncio.run(set_up_database(self._settings.model_copy(update=database)))

    def _encoder_file(self) -> Path | None:
        """Return the file that names the champion's encoder, unless others may have changed the registry."""
        external = self._settings.mlflow_tracking_uri or self._settings.database_url
        return Home(self._settings.home).champion_encoder(self._settings.space) if external is None else None

    def _leave_cluster(self, environment: Mapping[str, str]) -> None:
        """Take the applications from a cluster that outlives the process that deployed them."""
        if self._settings.ray_address is None or self._refused:
            return
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-P", "-m", "serving.standalone.processes", "leave"],
                env=environment,
                stdin=subprocess.DEVNULL,
                check=False,
                timeout=_LEAVE_SECONDS,
            )

    def _restart_database(self) -> None:
        if self._server is None or self._server.is_running() or self._ending:
            return
        log.error("database.ended")
        try:
            self._server.stop()
            self._server.start()
        except (DatabaseError, OSError):
            log.exception("database.failed")
            time.sleep(1)

    def _stop_database(self) -> None:
        if self._server is not None:
            self._server.stop()

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ending = True


def main() -> int:
    """Run the supervisor as a process."""
    bypass_proxies_for_loopback(os.environ)
    forget_libpq_variables(os.environ)
    settings = Settings()
    configure_logging(settings.log_level, process="supervisor", file=settings.log_file)
    return Supervisor(settings).run()


if __name__ == "__main__":
    sys.exit(main())
