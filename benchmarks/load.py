"""A load generator: closed loop (a client waits for its answer) and open loop (arrivals at a fixed rate).

In the open loop, latency counts from the moment a request was due, so waiting is never left out. Only for servers on
this machine, and bounded in clients and time. It shares the cores with the server that it measures.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools

from registry.data import corpora

MOST_CLIENTS = 2_000
MOST_SECONDS = 900
CACHE = Path(".cache/corpora")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The results after the warm-up; times in milliseconds, of the 2xx answers."""

    clients: int
    seconds: float
    requests: int
    per_second: float
    mean: float
    p50: float
    p95: float
    p99: float
    statuses: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What to send: bodies for a path in turn, from `clients` in a closed loop or at `rate` a second in an open one.

    `shape` makes bodies of texts: `text`, one a request; `texts`, `size` a request; `search`, the similar texts of
    vectors in the file `vectors`, which was saved by numpy.
    """

    path: str = "/v1/predict"
    shape: str = "text"
    size: int = 1
    clients: int = 32
    rate: float = 0.0
    seconds: float = 20.0
    warm_up: float = 3.0
    seed: int = 0
    vectors: str = ""

    def bodies(self) -> Iterator[bytes]:
        """Yield bodies without end; no text comes twice."""
        if self.shape == "search":
            import numpy as np

            rows = np.load(self.vectors).tolist()
            yield from cycle([json.dumps({"embedding": row, "k": 10}).encode() for row in rows])
        texts = sentences(self.seed)
        for number in count():
            again = f" ({number})" if number else ""
            if self.shape == "texts":
                for start in range(0, len(texts) - self.size + 1, self.size):
                    chosen = [text + again for text in texts[start : start + self.size]]
                    yield json.dumps({"texts": chosen}).encode()
            else:
                yield from (json.dumps({"text": text + again}).encode() for text in texts)


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request in flight."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note that the socket is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Note that the answer is whole."""
        parser, self._parser = self._parser, httptools.HttpResponseParser(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the server closed the connection."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed"))

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> int:
        """Send the bytes of one request; return the status of its answer."""
        if self._transport is None:
            raise ConnectionResetError("closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


class Generator:
    """Sends one load to one server and counts the results."""

    def __init__(self, url: str, key: str, load: Load) -> None:
        parts = urlsplit(url)
        if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError("the load generator only talks to this machine")
        if not (1 <= load.clients <= MOST_CLIENTS and 0 < load.seconds + load.warm_up <= MOST_SECONDS):
            raise ValueError(f"at most {MOST_CLIENTS} clients and {MOST_SECONDS} s")
        self._host, self._port = parts.hostname, parts.port or 80
        self._load = load
        self._requests = (
            _request(body, path=load.path, host=parts.netloc, key=key) for body in load.bodies()
        )
        self._latencies: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._idle: list[Connection] = []
        self._begin = self._end = 0.0

    async def run(self) -> Result:
        """Send it all."""
        self._begin = time.perf_counter() + self._load.warm_up
        self._end = self._begin + self._load.seconds
        loop = self._arrivals if self._load.rate else self._clients
        await loop()
        for connection in self._idle:
            connection.close()
        return self._result()

    async def _clients(self) -> None:
        async def client() -> None:
            while (due := time.perf_counter()) < self._end:
                await self._one(due)

        await asyncio.gather(*(client() for _ in range(self._load.clients)))

    async def _arrivals(self) -> None:
        """Poisson arrivals; one for which there is no client left counts as `no client`."""
        spread = random.Random(self._load.seed)
        due = time.perf_counter()
        flying: set[asyncio.Task[None]] = set()
        while due < self._end:
            await asyncio.sleep(due - time.perf_counter())
            if len(flying) < self._load.clients:
                task = asyncio.create_task(self._one(due))
                flying.add(task)
                task.add_done_callback(flying.discard)
            else:
                self._note(due, "no client")
            due += spread.expovariate(self._load.rate)
        if flying:
            await asyncio.wait(flying, timeout=60)

    async def _one(self, due: float) -> None:
        connection = self._idle.pop() if self._idle else None
        try:
            if connection is None or not connection.usable:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, self._host, self._port)
            status = str(await connection.ask(next(self._requests)))
        except OSError as error:
            self._note(due, type(error).__name__)
            await asyncio.sleep(0.01)
            return
        self._note(due, status)
        self._idle.append(connection)

    def _note(self, due: float, status: str) -> None:
        now = time.perf_counter()
        # A closed loop counts what was answered in the time, an open one what was due in it.
        if due >= self._begin and (self._load.rate or now <= self._end):
            self._statuses[status] += 1
            if status.startswith("2"):
                self._latencies.append((now - due) * 1000)

    def _result(self) -> Result:
        latencies = sorted(self._latencies)

        def quantile(share: float) -> float:
            return (
                round(latencies[min(len(latencies) - 1, int(share * len(latencies)))], 2)
                if latencies
                else 0.0
            )

        return Result(
            clients=self._load.clients,
            seconds=self._load.seconds,
            requests=len(latencies),
            per_second=round(len(latencies) / self._load.seconds, 1),
            mean=round(sum(latencies) / max(1, len(latencies)), 2),
            p50=quantile(0.5),
            p95=quantile(0.95),
            p99=quantile(0.99),
            statuses=dict(self._statuses),
        )


def sentences(seed: int = 0) -> list[str]:
    """Real texts, each once, in an order that a seed fixes: the rated corpora."""
    found = {example.text.strip() for example in corpora.load(CACHE) if example.rated}
    texts = sorted(text for text in found if text and "\0" not in text)
    random.Random(seed).shuffle(texts)
    return texts


def start(url: str, key: str, load: Load) -> Callable[[], Result]:
    """Run the load in a process of its own; call the returned function to wait for its result."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", url, json.dumps(asdict(load))],
        env=os.environ | {"VALENCE_API_KEY": key},
        stdout=subprocess.PIPE,
        text=True,
    )

    def result() -> Result:
        out, _ = process.communicate(timeout=load.seconds + load.warm_up + 120)
        if process.returncode:
            raise RuntimeError(f"the load generator ended with {process.returncode}")
        found: dict[str, Any] = json.loads(out)
        return Result(**found)

    return result


def measured(url: str, key: str, load: Load) -> Result:
    """Return the result of the load, once it is over."""
    return start(url, key, load)()


def main() -> None:
    """Send one load and print the result as JSON; the key comes from VALENCE_API_KEY."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("load", nargs="?", default="{}", help="fields of `Load` as JSON")
    arguments = parser.parse_args()
    load = Load(**json.loads(arguments.load))
    generator = Generator(arguments.url, os.environ.get("VALENCE_API_KEY", ""), load)
    print(json.dumps(asdict(asyncio.run(generator.run()))))


def _request(body: bytes, *, path: str, host: str, key: str) -> bytes:
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


if __name__ == "__main__":
    main()
