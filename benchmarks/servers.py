"""The servers under measurement; each is started on a free port of this machine, and ended."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.live import link_encoders

GROUPS = (
    ("encoder", "ServeReplica:encoder-"),
    ("ingress", ":ingress"),
    ("PostgreSQL", "postgres"),
    ("HAProxy", "haproxy"),
)
START_SECONDS = 180
END_SECONDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A server's address, and the path and shape of its loads; `pid` is the root of its processes."""

    name: str
    url: str
    key: str = ""
    path: str = "/predict"
    shape: str = "text"
    size: int = 1
    pid: int


class Platform:
    """A platform of the benchmark's own, with its settings."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._environment = (
            os.environ | {"VALENCE_HOME": str(home), "VALENCE_PORT": str(port)} | dict(settings)
        )

    def up(self) -> float:
        """Start it; seconds to the first prediction."""
        started = time.monotonic()
        self._valence("up", "--json")
        return time.monotonic() - started

    def down(self) -> None:
        """Stop it."""
        self._valence("down")

    @property
    def key(self) -> str:
        """Its admin key."""
        return (self.home / "admin.key").read_text().strip()

    @property
    def pid(self) -> int:
        """Its supervisor."""
        status: dict[str, Any] = json.loads(self._valence("status", "--json"))
        return int(status["pid"])

    def processor(self) -> dict[str, float]:
        """Return the processor seconds of its processes, by kind."""
        root = psutil.Process(self.pid)
        used = dict.fromkeys([name for name, _ in GROUPS] + ["the rest of Ray"], 0.0)
        for process in [root, *root.children(recursive=True)]:
            try:
                command = " ".join(process.cmdline())
                times = process.cpu_times()
            except psutil.Error:
                continue
            name = next((name for name, part in GROUPS if part in command), "the rest of Ray")
            used[name] += times.user + times.system
        return used

    @property
    def server(self) -> Server:
        """Return this platform as a server under measurement."""
        return Server(name="Valence", url=self.url, key=self.key, path="/v1/predict", pid=self.pid)

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a GET, or a POST of the body."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def _valence(self, *arguments: str) -> str:
        program = Path(sys.executable).with_name("valence")
        done = subprocess.run(
            [program, *arguments], env=self._environment, stdout=subprocess.PIPE, check=True, text=True
        )
        return done.stdout


@contextmanager
def home() -> Iterator[Path]:
    """Yield a folder for a platform; remove it afterwards with the database that may lie elsewhere."""
    with tempfile.TemporaryDirectory(prefix="valence-bench-", ignore_cleanup_errors=True) as folder:
        # The embedded server may run as a user of its own, who must be able to come by.
        Path(folder).chmod(0o755)
        try:
            yield Path(folder) / "home"
        finally:
            shutil.rmtree((Path(folder) / "home" / "postgres").resolve(), ignore_errors=True)


@contextmanager
def platform(**settings: str) -> Iterator[Platform]:
    """Start a fresh platform with these variables; its encoders are built before."""
    with home() as folder:
        link_encoders(folder)
        started = Platform(folder, **settings)
        try:
            started.up()
            yield started
        finally:
            started.down()


@contextmanager
def peer(
    name: str, module: str, *arguments: str, python: str = sys.executable, **shape: Any
) -> Iterator[Server]:
    """Start a peer, `python -m benchmarks.peers.MODULE PORT …`; wait until it answers, and end it."""
    port = free_port()
    log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the stack below)
    # A session of its own, so that what it starts ends with it.
    process = subprocess.Popen(
        [python, "-m", f"benchmarks.peers.{module}", str(port), *arguments],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    server = Server(name=name, url=f"http://127.0.0.1:{port}", pid=process.pid, **shape)
    try:
        body = {"texts": ["so good"]} if server.shape == "texts" else {"text": "so good"}
        deadline = time.monotonic() + START_SECONDS
        while not _answers(server.url + server.path, body):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise RuntimeError(f"{name} did not start:\n{log.read().decode()[-4000:]}")
            time.sleep(0.5)
        yield server
    finally:
        with ExitStack() as stack:
            stack.callback(log.close)
            _end(process)


def free_port() -> int:
    """Return a port that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str, body: Mapping[str, Any]) -> bool:
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return 200 <= answer.status < 300
    except (urllib.error.URLError, OSError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
            if number is signal.SIGKILL:
                return
