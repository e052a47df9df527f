"""A Ray cluster that was there before the platform: two raylets of one machine, started by `ray start`.

They have another working folder than the platform and an environment without any of its variables.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.clock import eventually
from tests.support.ports import find_free_port

_INHERITED = ("LANG", "PATH")
# `ray`, which lets no second node join while Ray keeps to loopback; here all nodes are on one machine.
_RAY = (
    "from types import SimpleNamespace; from ray.scripts import scripts; "
    "scripts.ray_constants = SimpleNamespace(**vars(scripts.ray_constants) | {'ENABLE_RAY_CLUSTER': True}); "
    "scripts.main()"
)


@dataclass
class ExistingRay:
    """Two raylets, with a token of their own or open to everybody."""

    folder: Path
    token: str | None
    port: int = field(default_factory=find_free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def authentication(self) -> Mapping[str, str]:
        """Return the variables with which others join."""
        if self.token is None:
            return {"RAY_AUTH_MODE": "disabled"}
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def environment(self) -> dict[str, str]:
        """Return the environment of the nodes."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return inherited | {
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join(
                path for path in (str(Path.cwd()), os.environ.get("PYTHONPATH")) if path
            ),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            **self.authentication,
        }

    def start(self) -> None:
        """Start the head, then the second raylet."""
        self._node(
            "head",
            *("--head", f"--port={self.port}", f"--temp-dir={self.folder / 'r'}", "--num-cpus=2"),
            "--include-dashboard=false",
        )
        self._node("second", f"--address={self.address}", "--num-cpus=2")

    def run(self, script: str) -> object:
        """Run a script on the cluster, and return what it prints as JSON."""
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import json, ray\nfrom ray import serve\nray.init({self.address!r}, log_to_driver=False)\n{script}",
            ],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def visible(self) -> str:
        """Return what others can see: the processes' command lines and environments, and Ray's logs."""
        logs = (path for path in self.folder.rglob("*") if path.suffix in (".log", ".out", ".err"))
        return "\n".join(
            [
                *(f"{each.cmdline()} {each.environ()}" for each in self._find_processes()),
                *(path.read_text(errors="replace") for path in logs),
            ]
        )

    def log(self) -> str:
        """Return the ends of Serve's logs."""
        paths = sorted(self.folder.glob("r/session_latest/logs/serve/*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)

    def restart(self) -> None:
        """End everything, as `ray stop --force` does, and start the nodes again on the same port."""
        self.stop()
        self.processes.clear()
        self.start()

    def stop(self) -> None:
        """End the nodes and what they started, found by the folder in its environment."""
        for process in self.processes:
            process.terminate()
        alive = [psutil.Process(each.pid) for each in self.processes if each.poll() is None]
        psutil.wait_procs(alive, timeout=10)
        for each in self._find_processes():
            with suppress(psutil.Error):
                each.kill()
        for process in self.processes:
            process.wait()

    def _find_processes(self) -> list[psutil.Process]:
        found = []
        for each in psutil.process_iter():
            with suppress(psutil.Error):
                if each.environ().get("HOME") == str(self.folder):
                    found.append(each)
        return found

    def _node(self, name: str, *arguments: str) -> None:
        written = self.folder / f"{name}.log"
        with written.open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-c", _RAY, "start", "--block", "--node-ip-address=127.0.0.1"),
                        *("--object-store-memory=80000000", *arguments),
                        f"--dashboard-agent-listen-port={find_free_port()}",
                    ],
                    env=self.environment(),
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

        # One after another: Ray confuses nodes that start at the same time on one address.
        def has_started() -> bool:
            assert self.processes[-1].poll() is None, written.read_text()
            return "--block" in written.read_text()

        eventually(has_started, within=60, what=f"{name} has started")


@contextmanager
def existing_ray(*, token: str | None = None) -> Iterator[ExistingRay]:
    """Run a cluster inside the block; no process and no file remains."""
    # Short, because Ray's sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="er-"))
    cluster = ExistingRay(folder=folder, token=token)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
