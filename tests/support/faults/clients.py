"""Clients in a closed loop: each sends a text, waits for the answer, records it and sends the next.

Only for a platform on this machine, bounded in number; the ledger bounds how much they send.
"""

import asyncio
import secrets
import ssl
from collections.abc import Iterator
from threading import Event, Thread
from typing import Self

import httpx

from tests.support.faults.ledger import Answer, Kind, Ledger
from tests.support.faults.texts import texts
from tests.support.live import LivePlatform

MOST_CLIENTS = 1_000
_ANSWER_SECONDS = 35.0
_REST_SECONDS = 0.01
_PAUSE_SECONDS = 0.1
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Made once, because it takes longer than a request; the platform is on this machine, without TLS."""


class Clients:
    """Clients in parallel that predict one text after another until the block ends; every answer is recorded."""

    def __init__(self, platform: LivePlatform, count: int, ledger: Ledger) -> None:
        if not 0 < count <= MOST_CLIENTS:
            raise ValueError(f"1 to {MOST_CLIENTS} clients, not {count}")
        self._platform = platform
        self._count = count
        self._ledger = ledger
        self._texts: Iterator[str] = texts(secrets.randbits(40))
        self._ended = Event()
        self._thread = Thread(target=lambda: asyncio.run(self._all()), name="clients")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def _all(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._count)))

    async def _client(self) -> None:
        # One connection each: in a pool of hundreds every request looks through all of them, and the crowd would
        # wait for itself more than for the platform.
        async with httpx.AsyncClient(
            base_url=self._platform.url,
            headers={"Authorization": f"Bearer {self._platform.key}"},
            timeout=_ANSWER_SECONDS,
            verify=_NO_TLS,
        ) as client:
            await self._one(client)

    async def _one(self, client: httpx.AsyncClient) -> None:
        while not self._ended.is_set() and not self._ledger.full:
            kind = await self._ask(client, next(self._texts))
            # A sensible client waits after a refusal.
            await asyncio.sleep(_REST_SECONDS if kind is Kind.ANSWERED else _PAUSE_SECONDS)

    async def _ask(self, client: httpx.AsyncClient, text: str) -> Kind:
        try:
            answer = await client.post("/v1/predict", json={"text": text})
        except httpx.HTTPError as error:
            self._ledger.ended(Kind.FAILED, type(error).__name__)
            return Kind.FAILED
        if answer.status_code == httpx.codes.CREATED:
            try:
                answered = answer_in(answer.json(), text)
            except (ValueError, KeyError):
                self._ledger.ended(Kind.FAILED, "201 without a prediction")
                return Kind.FAILED
            self._ledger.answered(answered)
            return Kind.ANSWERED
        kind, said = judged(answer)
        self._ledger.ended(kind, said)
        return kind


def answer_in(body: dict[str, object], text: str) -> Answer:
    """Return the platform's answer about a text, as the ledger keeps it."""
    scores = body["scores"]
    assert isinstance(scores, dict)
    return Answer(
        id=str(body["id"]),
        text=text,
        model=str(body["model"]),
        version=str(body["model_version"]),
        label=str(body["sentiment"]),
        scores={str(label): float(score) for label, score in scores.items()},
    )


def judged(answer: httpx.Response) -> tuple[Kind, str]:
    """Classify a refusal: 429 or 503 with the time to try again; everything else is a failure."""
    if answer.status_code not in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        return Kind.FAILED, str(answer.status_code)
    if not answer.headers.get("Retry-After", "").isdigit():
        return Kind.FAILED, f"{answer.status_code} without Retry-After"
    return Kind.REFUSED, str(answer.status_code)
