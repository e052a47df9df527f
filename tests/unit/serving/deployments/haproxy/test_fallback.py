"""The fallback that answers while HAProxy is away, with real processes in place of HAProxy and the raylet."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from serving.api.bodies import LARGE_BODY
from serving.deployments.haproxy.config import find_frontend
from serving.deployments.haproxy.fallback import build_command, count_listeners, is_standing_in
from tests.support.clock import eventually
from tests.support.ports import find_free_port

HOST = "127.0.0.1"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts processes, which end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(arguments))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def port() -> int:
    return find_free_port()


def start_fallback(
    start: Start, port: int, watched: subprocess.Popen[bytes], keeper: int
) -> subprocess.Popen[bytes]:
    """Start a fallback that waits."""
    process = start(*build_command(HOST, port, keeper=keeper, seconds=30, watched=watched.pid))
    eventually(lambda: is_waiting(process.pid), within=10, what="it waits")
    return process


def is_waiting(pid: int) -> bool:
    """Return whether the fallback waits on the other process's end. Files it closes meanwhile are skipped."""

    def target(file: Path) -> str:
        try:
            return str(file.readlink())
        except FileNotFoundError:
            return ""

    return any("pidfd" in target(file) for file in Path(f"/proc/{pid}/fd").iterdir())


def listener(port: int) -> socket.socket:
    """Bind a port as HAProxy does."""
    result = socket.socket()
    result.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    result.bind((HOST, port))
    result.listen()
    return result


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def test_it_refuses_while_haproxy_is_away(start: Start, port: int) -> None:
    haproxy, raylet = start("sleep", "60"), start("sleep", "60")
    waiting = start_fallback(start, port, haproxy, raylet.pid)
    assert count_listeners(port) == 0
    haproxy.kill()
    haproxy.wait()
    eventually(lambda: count_listeners(port) == 1, within=10, what="it listens")
    for method, body in (("GET", None), ("POST", b"x" * LARGE_BODY)):
        client = HTTPConnection(HOST, port, timeout=10)
        client.request(method, "/v1/predict", body)
        answer = client.getresponse()
        assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
        assert json.loads(answer.read())["status"] == 503
        client.close()
    with listener(port):
        eventually(lambda: has_ended(waiting), within=10, what="it makes room for the next HAProxy")


def test_it_ends_with_the_raylet(start: Start, port: int) -> None:
    haproxy, raylet = start("sleep", "60"), start("sleep", "60")
    waiting = start_fallback(start, port, haproxy, raylet.pid)
    haproxy.kill()
    haproxy.wait()
    eventually(lambda: count_listeners(port) == 1, within=10, what="it listens")
    raylet.kill()
    raylet.wait()
    eventually(lambda: has_ended(waiting), within=10, what="it has ended")
    assert count_listeners(port) == 0


def test_nobody_is_needed_where_the_next_haproxy_has_taken_over(start: Start, port: int) -> None:
    haproxy, raylet = start("sleep", "60"), start("sleep", "60")
    waiting = start_fallback(start, port, haproxy, raylet.pid)
    with listener(port):
        haproxy.kill()
        haproxy.wait()
        eventually(lambda: has_ended(waiting), within=10, what="it has ended")
        assert count_listeners(port) == 1


def test_without_a_process_to_wait_for_it_listens_at_once(start: Start, port: int) -> None:
    assert not is_standing_in(port, os.getpid())
    standing_in = start(*build_command(HOST, port, keeper=os.getpid(), seconds=30))
    eventually(lambda: is_standing_in(port, os.getpid()), within=10, what="it listens")
    assert not is_standing_in(find_free_port(), os.getpid())
    with listener(port):
        eventually(lambda: has_ended(standing_in), within=10, what="it makes room")


@pytest.mark.parametrize(
    ("bind", "address"),
    [("127.0.0.1:8000", ("127.0.0.1", 8000)), (":80", ("", 80)), ("[::1]:8000", ("::1", 8000))],
)
def test_it_knows_the_address_by_the_configuration(bind: str, address: tuple[str, int]) -> None:
    assert find_frontend(f"global\nfrontend http_frontend\n    bind {bind}\n") == address
    assert find_frontend("global\n") is None
