"""Faults of clients: connections that keep a server waiting, and bodies that cost it more than their senders.

Only for a platform on this machine, bounded in number and size.
"""

import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Thread
from typing import Final

import httpx

from tests.support.faults.ledger import Ledger
from tests.support.live import LivePlatform

# More than the requests that an ingress replica holds by default.
SLOW_CLIENTS: Final = 600
BIG_BODIES: Final = 4
_BODY_BYTES: Final = 2 * 2**20 - 1024
_DRIP_SECONDS: Final = 1.0


@contextmanager
def slow_clients(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """Open connections that say nothing, half a line, or a byte a second of a body, with a key and without."""
    beginnings = _beginnings(platform.key)
    ended = Event()
    with ExitStack() as stack:
        connections = []
        for number in range(SLOW_CLIENTS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", platform.port)))
            connection.sendall(beginnings[number % len(beginnings)])
            connections.append(connection)
        dripping = Thread(target=_drip, args=(connections, ended), name="slow-clients")
        dripping.start()
        try:
            yield
        finally:
            ended.set()
            dripping.join()


def _beginnings(key: str) -> list[bytes]:
    form = "Content-Type: application/x-www-form-urlencoded"
    with_key = f"Authorization: Bearer {key}\r\nContent-Type: application/json"
    return [
        b"",
        b"POST /v1/tok",
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nX-Fill",
        f"POST /v1/token HTTP/1.1\r\nHost: a\r\n{form}\r\nContent-Length: 8000\r\n\r\ng".encode(),
        f"POST /v1/token HTTP/1.1\r\nHost: a\r\n{form}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\ng\r\n".encode(),
        f"POST /v1/predict HTTP/1.1\r\nHost: a\r\n{with_key}\r\nContent-Length: 2000\r\n\r\n{{".encode(),
    ]


def _drip(connections: list[socket.socket], ended: Event) -> None:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE)
        while not ended.wait(_DRIP_SECONDS):
            for chosen, _ in selector.select(0):
                with suppress(OSError):
                    chosen.fileobj.send(b" ")  # type: ignore[union-attr]


@contextmanager
def big_bodies(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """Send bodies of nearly 2 MiB, one after another: all values, members, faults and text."""
    ended = Event()
    threads = [
        Thread(target=_send, args=(platform, path, body, ended), name="big-bodies")
        for path, body in _bodies()
        for _ in range(BIG_BODIES // 2)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _bodies() -> list[tuple[str, bytes]]:
    infer = b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["a"]}],"outputs":['
    members = b",".join(b'"%d":0' % number for number in range(200_000))
    return [
        ("/v2/models/sentiment/infer", infer + b"{}," * (_BODY_BYTES // 3 - 40) + b"{}]}"),
        ("/v1/predict", b'{"text":"a",' + members[: _BODY_BYTES - 20].rpartition(b",")[0] + b"}"),
        ("/v1/predict/batch", b'{"texts":[' + b'"",' * 2_000 + b'""]}'),
        ("/v1/predict", b'{"text":"' + b"a" * (_BODY_BYTES - 20) + b'"}'),
    ]


def _send(platform: LivePlatform, path: str, body: bytes, ended: Event) -> None:
    headers = {"Content-Type": "application/json"}
    with platform.client() as client:
        while not ended.is_set():
            with suppress(httpx.HTTPError):
                client.post(path, content=body, headers=headers)
            time.sleep(0.01)
