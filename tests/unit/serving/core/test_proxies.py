"""Proxies of the environment are not for this machine."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import requests

from serving.core.proxies import bypass_proxies_for_loopback
from tests.support.ports import find_free_port


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_this_machine_is_reached_directly(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: f"http://127.0.0.1:{find_free_port()}"}
    bypass_proxies_for_loopback(environment)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    for host in ("127.0.0.1", "localhost"):
        there = url.replace("127.0.0.1", host)
        assert httpx.get(there).status_code == 200
        assert requests.get(there, timeout=5).status_code == 200


def test_other_exemptions_stay() -> None:
    environment = {"no_proxy": "intern.example, 127.0.0.1", "NO_PROXY": "10.0.0.1"}
    bypass_proxies_for_loopback(environment)
    assert (
        environment["no_proxy"]
        == environment["NO_PROXY"]
        == "intern.example,127.0.0.1,10.0.0.1,localhost,::1"
    )
