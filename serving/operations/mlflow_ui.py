"""MLflow's own server and UI over the platform's registry, as a process in the foreground. Serves no model.

Owns only that process. MLflow has no login: everyone who reaches the server may change everything in it.
"""

import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import httpx

from db.connection.databases import require_reachable
from db.core.environment import select_environment
from serving.core.connections import find_tracking_uri
from serving.core.home import Home
from serving.core.subprocesses import end_with_parent
from serving.errors import Invalid
from serving.settings import Settings
from serving.standalone.launcher import LaunchFailed, require_free_port

Say = Callable[[str], None]

# What MLflow and its stores of artifacts read.
_OF_MLFLOW: Final = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "PG", "PYTHON", "LC_", "LANG")
_START_SECONDS, _END_SECONDS, _POLL_SECONDS = 120.0, 10.0, 0.2


class TrackingServer:
    """MLflow's server over one store, from `run` until a signal ends it.

    Args:
        store: the URI of a database.
        artifacts: folder for the artifacts of experiments that are created through the server.
        allowed_hosts: host names under which other machines reach it.
    """

    def __init__(
        self, store: str, *, artifacts: Path, host: str, port: int, allowed_hosts: Sequence[str] = ()
    ) -> None:
        if not allowed_hosts and not _is_loopback(host):
            raise Invalid(
                f"name the hosts under which {host} is reached: --allowed-hosts mlflow.example:{port}"
            )
        self._store = store
        self._artifacts = artifacts
        self._host = host
        self._port = port
        self._allowed_hosts = allowed_hosts
        self._ending = False

    @property
    def url(self) -> str:
        """The URL on this machine."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (compared, not bound)
        host = everywhere.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def run(self, say: Say) -> None:
        """Start the server, print its URL once it answers, and return when it ends.

        Raises:
            LaunchFailed: the port is taken, or the server doesn't start or ends by itself.
        """
        require_free_port(self._host, self._port, otherwise="choose another with --port")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        process = subprocess.Popen(
            self._arguments(),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            # In its own process group, so that Ctrl-C reaches it only once, through this process.
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509  (no other thread runs yet)
        )
        try:
            if self._wait_until_ready(process):
                say(self.url)
            while not self._ending:
                if (status := process.poll()) is not None:
                    raise LaunchFailed(
                        f"MLflow's server ended by itself with status {status}: its words are above"
                    )
                time.sleep(_POLL_SECONDS)
        finally:
            _stop(process)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the server answers; return False if a signal comes first or it ends."""
        deadline = time.monotonic() + _START_SECONDS
        # The server is reached directly, whatever proxy the environment names.
        with httpx.Client(timeout=5, trust_env=False) as client:
            while not self._ending and process.poll() is None:
                try:
                    if client.get(f"{self.url}/health").status_code == httpx.codes.OK:
                        return True
                except httpx.HTTPError:
                    pass
                if time.monotonic() > deadline:
                    raise LaunchFailed(
                        f"MLflow's server doesn't answer after {_START_SECONDS:.0f} s: try again"
                    )
                time.sleep(_POLL_SECONDS)
        return False

    def _arguments(self) -> list[str]:
        return [
            *(sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"),
            *("--host", self._host, "--port", str(self._port)),
            *("--uvicorn-opts", "--log-level warning"),
        ]

    def _environment(self) -> dict[str, str]:
        """Return the options that hold secrets; other users of the machine can read a command line."""
        artifacts = self._artifacts.resolve().as_uri()
        names = select_environment("VALENCE_HOME", prefixes=_OF_MLFLOW)
        names.pop("MLFLOW_TRACKING_URI", None)
        names |= {
            "MLFLOW_BACKEND_STORE_URI": self._store,
            # The platform reads artifacts without the server, so their addresses must not name it.
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts,
            "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
            # MLflow's own use of Starlette, of which nobody here can do anything.
            "PYTHONWARNINGS": "ignore:starlette.middleware.wsgi is deprecated",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        if self._allowed_hosts:
            origins = [f"{scheme}://{host}" for host in self._allowed_hosts for scheme in ("http", "https")]
            names["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(self._allowed_hosts)
            names["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(origins)
        else:
            local = ("localhost", "127.0.0.1", "[::1]")
            names["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(
                spelled for name in local for spelled in (name, f"{name}:{self._port}")
            )
        return names

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ending = True


def serve(
    settings: Settings, *, host: str, port: int, allowed_hosts: Sequence[str] = (), say: Say = print
) -> None:
    """Run MLflow's server over the platform's store until a signal.

    Raises:
        NotReady: the platform's database isn't up.
        Unavailable: the named database can't be reached.
        Invalid: the setting names no database.
        LaunchFailed: the port is taken, or the server doesn't start or ends by itself.
    """
    store = find_tracking_uri(settings)
    scheme = urlsplit(store).scheme.split("+")[0]
    if scheme in ("http", "https"):
        raise Invalid(f"MLFLOW_TRACKING_URI names a server that runs already: open {store}")
    if scheme in ("postgres", "postgresql"):
        require_reachable(store)
    elif scheme not in ("sqlite", "mysql", "mssql"):
        raise Invalid("MLFLOW_TRACKING_URI names no database: MLflow's server needs one")
    TrackingServer(
        store, artifacts=Home(settings.home).artifacts, host=host, port=port, allowed_hosts=allowed_hosts
    ).run(say)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the server with its workers, and kill those that don't end."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        if not _group_lives(process.pid):
            break
    process.wait()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
