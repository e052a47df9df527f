"""The fault of a foreign process on the ports of replicas: it answers everything."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Final

import psutil

from tests.support.faults.ledger import Ledger
from tests.support.faults.processes import INGRESS, found
from tests.support.live import LivePlatform

# Ray Serve's default range of its replicas' HTTP ports; it gives out the lowest first.
_PORTS: Final = range(30_000, 31_000)
_NEXT: Final = 3
_RETRY_SECONDS: Final = 0.05
_ANSWER: Final = b'{"id": "00000000-0000-7000-8000-000000000000", "sentiment": "neutral"}'


@contextmanager
def port_taken(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """`kill -9` the ingress replica while the ports that come next are taken, and take its own as soon as possible."""
    replica = found(INGRESS, platform)[0]
    own = next(
        connection.laddr.port
        for connection in replica.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in _PORTS
    )
    ended = Event()
    with ExitStack() as stack:
        taken = 0
        for port in range(own + 1, _PORTS.stop):
            # Others may have it, such as another platform.
            with suppress(OSError):
                stack.enter_context(_serving(port))
                taken += 1
            if taken == _NEXT:
                break
        replica.kill()
        thread = Thread(target=_take, args=(own, ended), name="foreign")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def _serving(port: int) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", port), _Foreign) as server:
        thread = Thread(target=server.serve_forever, name=f"foreign-{port}")
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _take(port: int, ended: Event) -> None:
    """Serve on the port once the kernel gives it away."""
    while not ended.wait(_RETRY_SECONDS):
        with suppress(OSError), _serving(port):
            ended.wait()


class _Foreign(BaseHTTPRequestHandler):
    """Answers each health check with 200 and everything else as a prediction would be."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Say that all is well."""
        self._answer(200)

    def do_POST(self) -> None:
        """Make a prediction up."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(201)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Say nothing."""

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(_ANSWER)))
        self.end_headers()
        self.wfile.write(_ANSWER)
