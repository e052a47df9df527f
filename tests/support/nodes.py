"""A Ray cluster of several raylets on this machine, from the pods of the manifests.

On Kubernetes each pod has an address and a file system; these nodes share one. The addresses, ports, folders and
secrets are therefore adapted. Everything else comes from the manifests.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from k8s.rendered import Resource, of_kind, settings_of
from serving.accounts.authentication import generate_key
from tests.support.clock import eventually
from tests.support.live import link_encoders
from tests.support.ports import find_free_port

_INHERITED = ("HOME", "LANG", "PATH", "PYTHONPATH", "PYTHONWARNINGS")
_TOOLS = Path(sys.executable).parent
# `ray`, which lets no second node join while Ray keeps to loopback; here all nodes are on one machine.
_RAY = (
    "from types import SimpleNamespace; from ray.scripts import scripts; "
    "scripts.ray_constants = SimpleNamespace(**vars(scripts.ray_constants) | {'ENABLE_RAY_CLUSTER': True}); "
    "scripts.main()"
)


@dataclass(kw_only=True)
class Nodes:
    """The cluster of a RayService: a head without CPUs, and a node for each replica of a worker group."""

    resources: list[Resource]
    folder: Path
    outside: Mapping[str, str]
    changed: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=find_free_port)
    dashboard: int = field(default_factory=find_free_port)
    gcs: int = field(default_factory=find_free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    workers: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def service(self) -> Resource:
        """Return the RayService."""
        return of_kind(self.resources, "RayService")[0]

    @property
    def url(self) -> str:
        """Return the URL of Serve."""
        return f"http://127.0.0.1:{self.port}"

    def configuration(self) -> dict[str, Any]:
        """Return the RayService's `serveConfigV2`, on loopback and with one proxy: two can't share an address."""
        serve_config: dict[str, Any] = yaml.safe_load(self.service["spec"]["serveConfigV2"])
        serve_config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        serve_config["proxy_location"] = "HeadOnly"
        return serve_config

    def environment(self, container: Mapping[str, Any], name: str) -> dict[str, str]:
        """Return the environment of a container of the manifests, in its own folder."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        declared = settings_of(self.resources, container)
        adapted = {
            variable: value.replace("/tmp/h", str(place / "h"))
            for variable, value in declared.items()
            if value.startswith("/tmp/h")
        }
        adapted |= {
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(_TOOLS / "valence-haproxy"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(find_free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(find_free_port()),
            "VALENCE_HAPROXY_BIND": "127.0.0.1",
            "VALENCE_HOST": "127.0.0.1",
            "VALENCE_HOME": str(place),
            # KubeRay gives it to every container, from the secret that `authOptions` names.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            # Ray's own processes keep to loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        inherited = {variable: os.environ[variable] for variable in _INHERITED if variable in os.environ}
        return inherited | declared | adapted | dict(self.outside) | dict(self.changed)

    def job(self, name: str) -> None:
        """Run the containers of a Job one after another; each must succeed."""
        job = next(each for each in of_kind(self.resources, "Job") if each["metadata"]["name"] == name)
        spec = job["spec"]["template"]["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            self.complete(container, "jobs")

    def complete(self, container: Mapping[str, Any], name: str) -> None:
        """Run a container's command to its end."""
        program, *arguments = container["command"]
        result = subprocess.run(
            [_TOOLS / program, *arguments],
            env=self.environment(container, name),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def start(self) -> None:
        """Start the head, then the workers, each after its init containers."""
        cluster = self.service["spec"]["rayClusterConfig"]
        head = cluster["headGroupSpec"]
        self._node(
            "head",
            head,
            "--head",
            f"--port={self.gcs}",
            f"--dashboard-port={self.dashboard}",
            f"--temp-dir={self.folder / 'r'}",
            "--include-dashboard=true",
            "--no-monitor",
        )
        eventually(self._dashboard_answers, within=60, what="the dashboard answers")
        for group in cluster["workerGroupSpecs"]:
            for container in group["template"]["spec"].get("initContainers", []):
                self.complete(container, f"{group['groupName']}-first")
            for number in range(group["replicas"]):
                self.workers[f"{group['groupName']}{number}"] = group
        for name in self.workers:
            self.work(name)

    def work(self, name: str) -> None:
        """Start a worker node, or restart it in its folder, as a pod is."""
        group = self.workers[name]
        resources = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        self._node(
            name,
            group,
            f"--address=127.0.0.1:{self.gcs}",
            f"--num-cpus={resources['cpu']}",
            f"--num-gpus={resources.get('nvidia.com/gpu', 0)}",
        )

    def deploy(self) -> str:
        """Deploy from migration to a champion that answers; return the admin's key."""
        key = generate_key().text
        link_encoders(self.folder / "jobs")
        (self.folder / "jobs" / "admin.key").write_text(key)
        self.job("valence-migrate")
        with ThreadPoolExecutor(1) as pool:
            # As on Kubernetes, this runs while the cluster starts: the ingress waits for a champion.
            registered = pool.submit(self.job, "valence-register")
            self.start()
            self.apply()
            eventually(self.running, within=300, what="the declared application runs")
            registered.result()
        return key

    def running(self) -> bool:
        """Return whether exactly the declared applications run."""
        states = self.applications("declarative")
        assert states.get("valence") != "DEPLOY_FAILED", self.log()
        return states == {"valence": "RUNNING"}

    def apply(self) -> None:
        """Send Serve its configuration, like the operator."""
        answer = self.ask("PUT", "/api/serve/applications/", json=self.configuration())
        assert answer.status_code == httpx.codes.OK, answer.text

    def applications(self, api_type: str | None = None) -> dict[str, str]:
        """Return the state of each application; the operator reads the `declarative` ones."""
        parameters = {} if api_type is None else {"api_type": api_type}
        answer = self.ask("GET", "/api/serve/applications/", params=parameters)
        return {name: each["status"] for name, each in answer.json()["applications"].items()}

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request to the dashboard with the operator's token."""
        headers = {"x-ray-authorization": f"Bearer {self.token}"}
        url = f"http://127.0.0.1:{self.dashboard}{path}"
        return httpx.request(method, url, headers=headers, timeout=60, **options)

    def log(self) -> str:
        """Return the ends of the logs of the nodes and of Serve."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("r/session_latest/logs/serve/*.log")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)

    def stop(self) -> None:
        """End every process of the cluster, found by its folder in their environment."""
        for process in self.processes:
            process.terminate()
        psutil.wait_procs(
            [psutil.Process(each.pid) for each in self.processes if each.poll() is None], timeout=20
        )
        for process in psutil.process_iter():
            try:
                if process.environ().get("VALENCE_HOME", "").startswith(f"{self.folder}/"):
                    process.kill()
            except psutil.Error:
                continue
        for each in self.processes:
            each.wait()

    def _dashboard_answers(self) -> bool:
        assert self.processes[0].poll() is None, self.log()
        try:
            return self.ask("GET", "/api/version").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _node(self, name: str, group: Mapping[str, Any], *arguments: str) -> None:
        container = group["template"]["spec"]["containers"][0]
        options = [
            f"--{key}={value}" for key, value in group["rayStartParams"].items() if key != "dashboard-host"
        ]
        written = self.folder / f"{name}.log"
        with written.open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-c", _RAY, "start", "--block", "--node-ip-address=127.0.0.1"),
                        *(*options, *arguments, f"--dashboard-agent-listen-port={find_free_port()}"),
                    ],
                    env=self.environment(container, name),
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        # One after another: Ray confuses nodes that start at the same time on one address.
        eventually(lambda: "--block" in written.read_text(), within=90, what=f"{name} has started")


@contextmanager
def new_cluster(
    resources: list[Resource], *, database: str, mlflow: str, installation_key: str, **changed: str
) -> Iterator[Nodes]:
    """Yield a cluster that isn't started; stop it and remove its files afterwards."""
    # Short, because Ray's sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="vk-"))
    outside = {
        "DATABASE_URL": database,
        "MLFLOW_TRACKING_URI": mlflow,
        "VALENCE_INSTALLATION_KEY": installation_key,
        "VALENCE_TOKEN_KEYS": secrets.token_hex(32),
    }
    cluster = Nodes(resources=resources, folder=folder, outside=outside, changed=changed)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)
