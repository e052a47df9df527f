"""A closed-loop load generator: each client sends its next request when its last one is answered.

Only for platforms on this machine, and bounded in clients and time. It shares the cores with what it measures.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools

from registry import corpora

MOST_CLIENTS = 256
MOST_SECONDS = 600
CACHE = Path(".cache/corpora")


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was measured after the warm-up; times in milliseconds."""

    clients: int
    seconds: float
    requests: int
    per_second: float
    p50: float
    p95: float
    p99: float
    statuses: dict[str, int]


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request in flight."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        parser, self._parser = self._parser, httptools.HttpResponseParser(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        """The platform closed the connection."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed"))

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> int:
        """Send the bytes of one request; the status of its answer."""
        if self._transport is None:
            raise ConnectionResetError("closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


async def closed_loop(
    url: str, key: str, texts: Sequence[str], *, clients: int, seconds: float, warm_up: float
) -> Result:
    """POST /v1/predict from so many clients; each request has the next of the texts."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError("the load generator only talks to this machine")
    if not (1 <= clients <= MOST_CLIENTS and 0 < seconds + warm_up <= MOST_SECONDS):
        raise ValueError(f"at most {MOST_CLIENTS} clients and {MOST_SECONDS} s")
    host, port = parts.hostname, parts.port or 80
    requests = cycle([_request(text, host=parts.netloc, key=key) for text in texts])
    begin = time.perf_counter() + warm_up
    end = begin + seconds
    latencies: list[float] = []
    statuses: Counter[str] = Counter()

    async def one(connection: Connection | None) -> tuple[str, Connection | None]:
        try:
            if connection is None or not connection.usable:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, host, port)
            return str(await connection.ask(next(requests))), connection
        except OSError as error:
            await asyncio.sleep(0.01)
            return type(error).__name__, None

    async def client() -> None:
        connection: Connection | None = None
        while (sent := time.perf_counter()) < end:
            status, connection = await one(connection)
            answered = time.perf_counter()
            if begin <= sent and answered <= end:
                statuses[status] += 1
                if status == "201":
                    latencies.append((answered - sent) * 1000)
        if connection is not None:
            connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    latencies.sort()

    def quantile(share: float) -> float:
        return round(latencies[min(len(latencies) - 1, int(share * len(latencies)))], 2) if latencies else 0.0

    return Result(
        clients=clients,
        seconds=seconds,
        requests=len(latencies),
        per_second=round(len(latencies) / seconds, 1),
        p50=quantile(0.5),
        p95=quantile(0.95),
        p99=quantile(0.99),
        statuses=dict(statuses),
    )


def sentences(seed: int = 0) -> list[str]:
    """Real texts, each once, in an order that a seed fixes: the rated corpora."""
    found = {example.text.strip() for example in corpora.load(CACHE) if example.rated}
    texts = sorted(text for text in found if text and "\0" not in text)
    random.Random(seed).shuffle(texts)
    return texts


def measured(url: str, key: str, *, clients: int, seconds: float, warm_up: float, seed: int = 0) -> Result:
    """The same from a process of its own."""
    arguments = [url, "--clients", str(clients), "--seconds", str(seconds), "--warm-up", str(warm_up)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *arguments, "--seed", str(seed)],
        env=os.environ | {"VALENCE_API_KEY": key},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=seconds + warm_up + 120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return Result(**found)


def table(rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Rows as lines of a Markdown table; the first is the head."""
    head, *body = [[str(cell) for cell in row] for row in rows]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in body:
        yield f"| {' | '.join(row)} |"


def main() -> None:
    """Measure one load and print the result as JSON; the key comes from VALENCE_API_KEY."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--warm-up", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    texts = sentences(arguments.seed)
    result = asyncio.run(
        closed_loop(
            arguments.url,
            os.environ["VALENCE_API_KEY"],
            texts,
            clients=arguments.clients,
            seconds=arguments.seconds,
            warm_up=arguments.warm_up,
        )
    )
    print(json.dumps(asdict(result)))


def _request(text: str, *, host: str, key: str) -> bytes:
    body = json.dumps({"text": text}).encode()
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


if __name__ == "__main__":
    main()
