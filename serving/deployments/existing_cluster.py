"""The Ray cluster that RAY_ADDRESS names: looked at, joined and left.

Owns the mark that says which platform runs there. Deletes only applications of that platform, and Serve only if it was
started here and nobody else uses it. Imports Ray only once its environment is set.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil
import structlog

from db.core.urls import find_host
from serving.core.home import read_installation_key
from serving.deployments.cluster import build_environment, uses_haproxy
from serving.deployments.haproxy.fallback import is_standing_in
from serving.deployments.ray_patches import LOOPBACK_ONLY
from serving.deployments.request_guard import CALLBACK_VARIABLE
from serving.settings import Settings

_MARK: Final = b"installation"
_NAMESPACE: Final = b"valence"
_CONTROLLER: Final = ("SERVE_CONTROLLER_ACTOR", "serve")
_HEAD: Final = "node:__internal_head__"
_PROBE_SECONDS: Final = 5
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

log = structlog.get_logger(__name__)


class ClusterRefused(Exception):
    """The platform can't run on the named cluster as it is; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """The mark that a platform leaves: who it is, its present job, and the Serve that it started, if it did."""

    fingerprint: str
    home: str
    host: str
    job: str
    serve: str | None = None
    haproxy: bool = False

    def is_same(self, other: "Mark | None") -> bool:
        """Return whether both are of one platform."""
        return other is not None and other.fingerprint == self.fingerprint


def join(settings: Settings, say: Callable[[str], None]) -> None:
    """Join the cluster, and start Serve there unless it runs.

    Raises:
        ClusterRefused: the cluster isn't one that this platform may or can run on.
        OSError: no Ray answers there.
    """
    _connect(settings, {})
    ray = _ray()
    try:
        head_is_here = _check_nodes(settings, ray.nodes())
        _check_token(settings, ray.get_runtime_context().gcs_address, say)
        serve = _find_serve()
        earlier = _read_mark()
        started = earlier is not None and serve is not None and earlier.serve == serve
        if started:
            haproxy = earlier is not None and earlier.haproxy
        else:
            haproxy = serve is None and head_is_here and uses_haproxy(settings)
    finally:
        ray.shutdown()
    environment = build_environment(settings, haproxy=haproxy)
    if serve is not None and not started:
        # The proxies of others have no guard of ours.
        del environment[CALLBACK_VARIABLE]
        os.environ.pop(CALLBACK_VARIABLE, None)
    # Ray reads its part when it is imported by Serve, which hasn't happened yet.
    os.environ |= environment
    # Each process that this one has Ray start inherits them. They are shown in listings, and hold no secret.
    _connect(
        settings,
        {
            name: value
            for name, value in environment.items()
            if name.startswith("RAY_SERVE_") or not name.startswith("RAY_")
        },
    )
    try:
        _start_serve(settings, haproxy=haproxy)
    except BaseException:
        ray.shutdown()
        raise
    if not haproxy:
        say("Ray's own proxy serves HTTP, without HAProxy: overload is refused by the ingress itself")


def leave(settings: Settings) -> None:
    """Delete the applications of this platform, and Serve if this platform started it and nobody else uses it.

    The cluster is joined already. Leave another platform's alone.
    """
    from ray import serve
    from ray.experimental import internal_kv

    from serving.control.pool import is_encoder_application

    mark = _read_mark()
    running = _find_serve()
    if mark is None or running is None or not _build_mark(settings).is_same(mark):
        return
    names = set(serve.status().applications)
    ours = {name for name in names if _is_ours(name)}
    ends_serve = mark.serve == running and ours == names
    if ends_serve:
        serve.shutdown()
    else:
        # The application first: its control would start the encoders again.
        for name in sorted(ours, key=is_encoder_application):
            serve.delete(name)
    if mark.serve == running and not ends_serve:
        # The next platform learns from it how Serve was started.
        _write_mark(replace(mark, job=""))
    else:
        internal_kv._internal_kv_del(_MARK, namespace=_NAMESPACE)
    log.info("cluster.left", applications=sorted(ours), serve_ended=ends_serve)


def clean_up(settings: Settings) -> None:
    """Join the cluster only to `leave` it, for a process that couldn't."""
    _connect(settings, {})
    leave(settings)


def find_processes() -> list[psutil.Process]:
    """Return the processes of the joined Ray that this one can't do without, as far as they run on this machine."""
    from ray._private.worker import global_worker

    node = global_worker.node
    needed = {
        ("raylet", f"--raylet_socket_name={node.raylet_socket_name}"),
        ("gcs_server", f"--session-name={node.session_name}"),
    }
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if any((process.info["name"], argument) in needed for argument in process.info["cmdline"] or ())
    ]


def _connect(settings: Settings, environment: Mapping[str, str]) -> None:
    address = settings.ray_address or ""
    if address.startswith("ray://"):
        raise ClusterRefused(
            "RAY_ADDRESS names a Ray client server: run `valence up` on a node of the cluster, with HOST:PORT or auto"
        )
    _prepare_address(address)
    _ray().init(
        address=address,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": dict(environment)} if environment else None,
    )


def _prepare_address(address: str) -> None:
    """Have Ray keep to loopback if the cluster does. Raise ConnectionError if nothing answers at its address."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    host = host.strip("[]")
    with socket.create_connection((host, int(port)), _PROBE_SECONDS):
        pass
    # Ray itself would try for a minute, and then say only that it can't connect.
    if _demands_token(address, _find_token()):
        raise ClusterRefused(
            f"the Ray cluster at {address} refuses the token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file"
        )
    if host in _LOOPBACK and not any(_answers(own, int(port)) for own in _own_addresses()):
        # Otherwise Ray puts another address of this machine in the place of a loopback address.
        os.environ |= LOOPBACK_ONLY


def _own_addresses() -> list[str]:
    """Return the addresses of this machine that others may reach."""
    return [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6)
        and not each.address.startswith(("127.", "::1", "fe80"))
    ]


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), _PROBE_SECONDS):
            return True
    except OSError:
        return False


def _ray() -> Any:
    import ray

    return ray


def _check_nodes(settings: Settings, nodes: list[dict[str, Any]]) -> bool:
    """Check that the nodes reach the database, and clients the head; return whether the head is on this machine."""
    here = {*_own_addresses(), *_LOOPBACK}
    alive = [node for node in nodes if node["Alive"]]
    elsewhere = sorted({node["NodeManagerAddress"] for node in alive} - here)
    if elsewhere and _is_only_here(settings):
        raise ClusterRefused(
            f"the cluster has nodes on other machines ({', '.join(elsewhere[:3])}), and they can't reach the embedded "
            "PostgreSQL: name a database that they can reach by DATABASE_URL"
        )
    head = next((node["NodeManagerAddress"] for node in alive if _HEAD in node["Resources"]), None)
    if head in elsewhere and settings.url is None:
        raise ClusterRefused(
            f"the head of the cluster is {head}, where HTTP will be answered: run `valence up` there, or set "
            f"VALENCE_HOST to an address of the head and VALENCE_URL to http://{head}:{settings.port}"
        )
    return head not in elsewhere


def _is_only_here(settings: Settings) -> bool:
    """Return whether the database listens only to this machine."""
    url = settings.database_url
    host = find_host(url.get_secret_value()) if url else ""
    return host.startswith("/") or host in ("", *_LOOPBACK)


def _check_token(settings: Settings, address: str, say: Callable[[str], None]) -> None:
    if _demands_token(address):
        return
    if settings.ray_token == "required":  # noqa: S105  (no token)
        raise ClusterRefused(
            f"the Ray cluster at {address} demands no token, and VALENCE_RAY_TOKEN is required: start it with "
            "RAY_AUTH_MODE=token"
        )
    log.warning("cluster.open", address=address)
    say(
        f"WARNING: the Ray cluster at {address} demands no token: whoever reaches its ports can run code there and "
        "read everything. Start it with RAY_AUTH_MODE=token; VALENCE_RAY_TOKEN=required refuses such a cluster"
    )


def _find_token() -> str:
    """Return the token that Ray's drivers find; empty if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else ""


def _demands_token(address: str, token: str = "") -> bool:
    """Return whether Ray refuses a call without a token, or with another one than its own."""
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            call(
                b"", timeout=_PROBE_SECONDS, metadata=[("authorization", f"Bearer {token}")] if token else []
            )
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _find_serve() -> str | None:
    """Return the id of the Serve that runs on the cluster, which it keeps until it is shut down."""
    try:
        return str(_ray().get_actor(*_CONTROLLER)._actor_id.hex())
    except ValueError:
        return None


def _start_serve(settings: Settings, *, haproxy: bool) -> None:
    """Start Serve, or find room for this platform in the one that runs; leave the mark."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    earlier, running = _read_mark(), _find_serve()
    started = running if earlier is not None and earlier.serve == running else None
    mark = replace(_build_mark(settings), serve=started, haproxy=haproxy)
    if running is not None:
        details = _ray().get(_ray().get_actor(*_CONTROLLER).get_serve_instance_details.remote())
        _check_applications(mark, earlier, details["applications"])
        _check_address(settings, details["http_options"])
        _claim(mark, earlier)
        return
    if not _is_free(settings.host, settings.port) and not is_standing_in(settings.port, os.getppid()):
        raise ClusterRefused(
            f"port {settings.port} is taken: stop the program that uses it, or set VALENCE_PORT"
        )
    _check_applications(mark, earlier, {})
    _claim(mark, earlier)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=settings.host, port=settings.port),
    )
    _write_mark(replace(mark, serve=_find_serve()))


def _check_address(settings: Settings, options: Mapping[str, Any]) -> None:
    from ray.serve.config import HTTPOptions

    # Ray tells only what was set.
    default = HTTPOptions()
    host, port = options.get("host", default.host), options.get("port", default.port)
    if (host, port) != (settings.host, settings.port):
        raise ClusterRefused(
            f"Serve runs on this cluster already and answers at {host}:{port}, not at {settings.host}:{settings.port}: "
            f"set VALENCE_HOST={host} and VALENCE_PORT={port}, or use another cluster"
        )


def _check_applications(mark: Mark, earlier: Mark | None, applications: Mapping[str, Any]) -> None:
    ours = mark.is_same(earlier)
    if earlier is not None and not ours and (any(map(_is_ours, applications)) or _is_running(earlier.job)):
        raise ClusterRefused(
            f"another platform runs on this cluster, from {earlier.home} on {earlier.host}: stop it there with "
            "`valence down`, or use another cluster"
        )
    for name, each in applications.items():
        if _is_ours(name) and not ours:
            raise ClusterRefused(
                f"an application {name} runs on this cluster, which `valence up` didn't start: delete it, or use "
                "another cluster"
            )
        if each["route_prefix"] == "/" and not _is_ours(name):
            raise ClusterRefused(
                f"the application {name} answers at / on this cluster, where Valence must: give it another "
                "route_prefix, or use another cluster"
            )


def _is_ours(name: str) -> bool:
    from serving.control.pool import APPLICATION, is_encoder_application

    return name == APPLICATION or is_encoder_application(name)


def _is_running(job: str) -> bool:
    from ray._private.state import jobs

    return any(each["JobID"] == job and not each["IsDead"] for each in jobs())


def _build_mark(settings: Settings) -> Mark:
    home, host = str(settings.home.absolute()), socket.gethostname()
    secret = read_installation_key(settings) + f"{host}:{home}".encode()
    job = _ray().get_runtime_context().get_job_id()
    return Mark(fingerprint=hashlib.sha256(secret).hexdigest()[:16], home=home, host=host, job=job)


def _read_mark() -> Mark | None:
    from ray.experimental import internal_kv

    written = internal_kv._internal_kv_get(_MARK, namespace=_NAMESPACE)
    return None if written is None else Mark(**json.loads(written))


def _claim(mark: Mark, earlier: Mark | None) -> None:
    """Leave the mark. Raise ClusterRefused if another platform was faster."""
    from ray.experimental import internal_kv

    if earlier is not None:
        internal_kv._internal_kv_del(_MARK, namespace=_NAMESPACE)
    if not _write_mark(mark, overwrite=False):
        raise ClusterRefused("another platform has just started on this cluster: use another cluster")


def _write_mark(mark: Mark, *, overwrite: bool = True) -> bool:
    """Write the mark; return False if one is there that may not be overwritten."""
    from ray.experimental import internal_kv

    written = json.dumps(asdict(mark)).encode()
    was_there = internal_kv._internal_kv_put(_MARK, written, overwrite=overwrite, namespace=_NAMESPACE)
    return overwrite or not was_there


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
