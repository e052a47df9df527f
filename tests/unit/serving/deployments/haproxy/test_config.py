"""The HAProxy configuration that Ray Serve writes, corrected: by its lines, and by HAProxy itself."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from ray.serve._private import haproxy
from ray.serve.config import HTTPOptions

from serving.deployments.haproxy.config import find_binary, rewrite_config
from tests.support.clock import eventually
from tests.support.ports import find_free_port

ROOM = 2
REQUEST_ID = re.compile(rb"\r\nx-request-id: ([A-Za-z0-9._-]+)\r\n")


def written(folder: Path, port: int, server: int | None, host: str = "127.0.0.1") -> str:
    """Return the configuration as the installed Ray writes it, for one replica or none."""
    servers = [haproxy.ServerConfig(name="replica", host="127.0.0.1", port=server)] if server else []
    backend = haproxy.BackendConfig(
        name="http-valence", path_prefix="/", app_name="valence", servers=servers, health_check_inter="100ms"
    )
    backend.fallback_server = haproxy.ServerConfig(name="PROXY-fallback-31fc", host="127.0.0.1", port=8500)
    settings = haproxy.HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        metrics_port=find_free_port(),
        stats_port=find_free_port(),
        nbthread=1,
        maxconn=200,
        http_options=HTTPOptions(host=host, port=port),
        has_received_routes=True,
        has_received_servers=True,
    )
    api = haproxy.HAProxyApi(settings, {"valence": backend}, str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    return (folder / "haproxy.cfg").read_text()


def rewritten(folder: Path, port: int, server: int | None, **options: Any) -> str:
    """Return the configuration as HAProxy gets it."""
    return rewrite_config(written(folder, port, server), bind="127.0.0.1", room=ROOM, **options)


@pytest.fixture
def config(tmp_path: Path) -> str:
    return rewritten(tmp_path, 8000, 30000)


def test_every_port_binds_to_the_configured_address(config: str) -> None:
    assert set(re.findall(r"bind (\S+):\d+", config)) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("host", "server"), [("::1", "[::1]"), ("::", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")]
)
def test_replicas_are_asked_where_they_listen(tmp_path: Path, host: str, server: str) -> None:
    config = rewrite_config(written(tmp_path, find_free_port(), 30000, host), bind="127.0.0.1", room=ROOM)
    assert re.findall(r"^\s*server \S+ (\S+) ", config, re.MULTILINE) == [f"{server}:30000"]
    (tmp_path / "haproxy.cfg").write_text(config)
    checked = subprocess.run(
        [find_binary(), "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_admin_socket_is_private_and_no_line_goes_to_a_syslog(config: str) -> None:
    assert "admin.sock mode 600 level admin" in config
    assert ":514" not in config


def test_refusals_are_json_and_never_come_from_the_fallback_proxy(config: str) -> None:
    assert "errorfile" not in config
    assert "PROXY-fallback" not in config
    assert "text/html" not in config
    bodies = re.findall(r' "(\{.*?\})" (?:hdr|if)', config)
    assert len(bodies) > 20
    assert all(json.loads(body.replace('\\"', '"')) for body in bodies)


def test_a_configuration_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    odd = written(tmp_path, 8000, 30000).replace("mode 666", "mode 644")
    with pytest.raises(ValueError, match="stats socket"):
        rewrite_config(odd, bind="127.0.0.1", room=1)


@pytest.mark.parametrize(("sources", "bound"), [(0, False), (50, True)])
def test_connections_of_an_address_are_bounded_only_by_a_setting(
    tmp_path: Path, sources: int, bound: bool
) -> None:
    config = rewritten(tmp_path, 8000, 30000, sources=sources)
    assert ("sc0_conn_cur gt 50" in config) is bound
    check_config(tmp_path, config)


def check_config(folder: Path, config: str) -> None:
    path = folder / "checked.cfg"
    path.write_text(config)
    checked = subprocess.run(
        [find_binary(), "-c", "-f", path], capture_output=True, text=True, check=False, timeout=30
    )
    assert checked.returncode == 0, checked.stderr
    assert "ALERT" not in checked.stderr


class Replica(ThreadingHTTPServer):
    """A replica that answers with what it was sent; `/v1/predict/batch` waits until `release` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.release = Event()

    def handle_error(self, *_: object) -> None:
        """Say nothing: HAProxy's checks leave when they have the status."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replica

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path != "/-/healthz":
            self.server.seen.append(
                (self.path, {name.lower(): value for name, value in self.headers.items()})
            )
        if self.path == "/v1/predict/batch":
            self.server.release.wait(20)
        if self.headers.get("X-Answer") == "noise":
            self.wfile.write(b"noise\r\n\r\n")
            self.close_connection = True
            return
        body = b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_OPTIONS = _answer  # noqa: N815  (the standard library's names)

    def log_message(self, *_: object) -> None:
        return


class Front:
    """HAProxy in front of a replica, or of none."""

    def __init__(self, folder: Path, replica: Replica | None, **options: Any) -> None:
        self.port = find_free_port()
        path = folder / "front.cfg"
        config = rewritten(folder, self.port, replica.server_port if replica else None, **options)
        config, waits = re.subn(r"(timeout http-request|wait-for-body time) 10s", r"\1 1s", config)
        assert waits == 2
        path.write_text(config)
        self._process = subprocess.Popen([find_binary(), "-f", path, "-db"], stderr=subprocess.DEVNULL)
        eventually(self._listens, within=20, what="HAProxy listens")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def open(self, data: bytes) -> socket.socket:
        """Connect and send; the answer is read later."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection

    def send(self, data: bytes) -> tuple[int, bytes, bytes]:
        """Send this and return the status, the head and the body."""
        with self.open(data) as connection:
            return read_answer(connection)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def read_answer(connection: socket.socket) -> tuple[int, bytes, bytes]:
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = connection.recv(65536)
        assert chunk, answer
        answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    head = b"\r\n" + head.partition(b"\r\n")[2].lower() + b"\r\n"
    length = re.search(rb"content-length: (\d+)", head)
    while length is not None and len(body) < int(length[1]):
        body += connection.recv(65536)
    return int(answer.split(b" ", 2)[1]), head, body


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # HAProxy takes 97 bytes for the path of a socket.
    folder = tmp_path_factory.mktemp("h")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    with Replica() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


@pytest.fixture(scope="module")
def front(folder: Path, replica: Replica) -> Iterator[Front]:
    front = Front(folder, replica)
    eventually(lambda: front.send(post("/v1/feedback"))[0] == 200, within=20, what="the replica is up")
    yield front
    front.close()


def test_ray_s_headers_do_not_come_in_and_the_caller_s_id_is_one_that_everybody_can_read(
    front: Front, replica: Replica
) -> None:
    headers = (
        "X-Request-Timeout-Seconds: 0.001",
        "x-request-disconnect-disabled: ?1",
        "serve_multiplexed_model_id: x",
        "X-Session-Id: x",
        "X-Serve-Router-Anything: x",
        "X-Request-Id: a\xff",
        "X-Forwarded-For: 192.0.2.1",
    )
    head = "\r\n".join(["GET /v1/me HTTP/1.1", "Host: a", *headers, "", ""]).encode("latin-1")
    status, answered, _ = front.send(head)
    path, sent = replica.seen[-1]
    (request_id,) = REQUEST_ID.findall(answered)
    assert (status, path, sent["x-request-id"].encode()) == (200, "/v1/me", request_id)
    assert not [name for name in sent if re.search(r"timeout|disconnect|serve|session", name)]
    assert b"x-content-type-options: nosniff" in answered


def test_the_caller_s_address_is_the_last_one_of_the_chain(front: Front, replica: Replica) -> None:
    front.send(b"GET /v1/me HTTP/1.1\r\nHost: a\r\n\r\n")
    assert replica.seen[-1][1]["x-forwarded-for"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + b"a" * 40_960 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ],
)
def test_odd_requests_are_answered_in_json_with_an_id(front: Front, request_head: bytes, status: int) -> None:
    answered, head, body = front.send(request_head)
    assert (answered, len(REQUEST_ID.findall(head))) == (status, 1)
    assert status == 204 or (b"application/problem+json" in head and json.loads(body)["status"] == status)


@pytest.mark.parametrize("size", [14_000, 16_000])
def test_urls_and_headers_of_ordinary_size_are_served(front: Front, size: int) -> None:
    filling = b"a" * size
    assert front.send(b"GET /" + filling + b" HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
    assert front.send(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + filling + b"\r\n\r\n")[0] == 200


@pytest.mark.parametrize("path", ["/v1/token", "/v1/%74oken"])
def test_the_body_of_a_token_request_is_waited_for_in_haproxy(
    front: Front, replica: Replica, path: str
) -> None:
    before = len(replica.seen)
    status, head, body = front.send(
        post(path, b"grant_type=x").replace(b"\r\n\r\ngrant_type=x", b"\r\n\r\ng")
    )
    assert (status, len(REQUEST_ID.findall(head)), len(replica.seen)) == (408, 1, before)
    assert b"content-type: application/json\r\n" in head
    assert json.loads(body)["error"] == "invalid_request"


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/%66eedback"])
def test_no_body_that_does_not_come_takes_a_place_of_a_replica(
    front: Front, replica: Replica, path: str
) -> None:
    before = len(replica.seen)
    status, head, body = front.send(post(path, b'{"text": "x"}').removesuffix(b'"x"}'))
    assert (status, len(REQUEST_ID.findall(head)), len(replica.seen)) == (408, 1, before)
    assert b"content-type: application/problem+json\r\n" in head
    assert json.loads(body)["status"] == 408


def test_headers_that_do_not_come_end_the_connection(front: Front) -> None:
    with front.open(b"POST /v1/predict HTTP/1.1\r\nHos") as slow, front.open(b"") as silent:
        assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert silent.recv(65536) == b""


COMPUTING = (
    "/v1/predict",
    "/v1/predict/batch",
    "/v1/%70redict",
    "/v1/predict%2fbatch",
    "http://a/v1/predict",
    "/v1/predict?a=b",
    "/v1/embeddings",
    "/v1/similar",
    "/v1/duplicates",
    "/v2/models/sentiment/infer",
    "/v2/models/sentiment/versions/1/infer",
    "/%762/models/sentiment/%69nfer",
    "/v1/topics",
    "/v1/models/sentiment/diff",
    "/v1/predictions/1/second-opinion",
)
OTHERS = (
    "/v1/feedback",
    "/health/ready",
    "/v1/token",
    "/v1/predictions",
    "/V1/predict",
    "//v1/predict",
    "/v1/keys",
)


def test_whatever_computes_is_refused_while_the_replicas_are_full(front: Front, replica: Replica) -> None:
    replica.release.clear()
    held = [front.open(post("/v1/predict/batch")) for _ in range(ROOM)]
    eventually(
        lambda: sum(path == "/v1/predict/batch" for path, _ in replica.seen) >= ROOM,
        within=20,
        what="the replica is full",
    )
    answers = {path: front.send(post(path)) for path in (*COMPUTING, *OTHERS)}
    replica.release.set()
    for connection in held:
        assert read_answer(connection)[0] == 200
        connection.close()
    assert {path: answers[path][0] for path in COMPUTING} == dict.fromkeys(COMPUTING, 429)
    assert {path: answers[path][0] for path in OTHERS} == dict.fromkeys(OTHERS, 200)
    assert all(b"retry-after: 1" in answers[path][1] for path in COMPUTING)
    forms = {path: json.loads(answers[path][2]) for path in COMPUTING}
    assert forms["/v1/predict"]["type"] == "urn:valence:problem:overloaded"
    assert forms["/v1/embeddings"]["error"]["type"] == "rate_limit_error"
    assert set(forms["/%762/models/sentiment/%69nfer"]) == {"error"}


def test_what_is_no_answer_becomes_502_in_the_form_of_its_route(front: Front) -> None:
    answers = {
        path: front.send(post(path, b"", "X-Answer: noise")) for path in ("/v1/keys", "/v2/models/a/ready")
    }
    assert [status for status, *_ in answers.values()] == [502, 502]
    assert b"application/problem+json" in answers["/v1/keys"][1]
    assert b"content-type: application/json\r\n" in answers["/v2/models/a/ready"][1]
    assert set(json.loads(answers["/v2/models/a/ready"][2])) == {"error"}


def test_without_a_replica_each_protocol_has_its_form_of_503(folder: Path) -> None:
    lonely = folder / "lonely"
    lonely.mkdir()
    front = Front(lonely, None)
    try:
        answers = {
            path: front.send(post(path))
            for path in (
                "/v1/predict",
                "/v1/embeddings",
                "/v2/models/a/infer",
                "/v1/token",
                "/",
                "/health/live",
            )
        }
    finally:
        front.close()
    assert {status for status, _, _ in answers.values()} == {503}
    assert all(b"retry-after: 1" in head and REQUEST_ID.search(head) for _, head, _ in answers.values())
    forms = {path: json.loads(body) for path, (_, _, body) in answers.items()}
    assert forms["/v1/predict"]["title"] == "Not ready"
    assert (set(forms["/v2/models/a/infer"]), set(forms["/v1/embeddings"])) == ({"error"}, {"error"})
    assert forms["/v1/token"]["error"] == "temporarily_unavailable"
