"""A guard before Ray's own code: what clients send may not steer Ray, and what Ray answers is told in our forms.

Ray Serve builds it into each proxy and each replica that serves HTTP, by a setting of its environment. Knows neither
routes nor credentials. Imports nothing heavy.
"""

import asyncio
import logging
import re
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.deployments.haproxy.response import (
    NO_ROUTE,
    OVERLOADED,
    TIMED_OUT,
    UNAVAILABLE,
    UNEXPECTED,
    Refusal,
)

CALLBACK: Final = "serving.deployments.request_guard.build_middlewares"
CALLBACK_VARIABLE: Final = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
# More than any route reads. Ray itself would read a body on and on while its request is served.
MOST_BYTES: Final = 20 * 2**20

_HEALTH: Final = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
# Ray's own answers, on which its proxies depend.
_RAYS: Final = frozenset({"/-/healthz", "/-/routes"})
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Names with `-` for `_`, as Ray compares them.
_STEERING: Final = frozenset(
    {
        b"x-request-id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
_STEERING_PREFIX: Final = b"x-serve-router-"
_BODY_HEADERS: Final = (b"content-length", b"transfer-encoding")
_REFUSALS: Final = {404: NO_ROUTE, 408: TIMED_OUT, 429: OVERLOADED, 503: UNAVAILABLE}

log = logging.getLogger(__name__)


@dataclass
class _Health:
    """The application of this process that answers health routes, and the event loop that it runs in."""

    application: ASGIApp | None = None
    loop: asyncio.AbstractEventLoop | None = None

    def find(self, path: str) -> ASGIApp | None:
        """Return the application if the path is its own to answer here."""
        if path in _HEALTH and self.loop is asyncio.get_running_loop():
            return self.application
        return None


_health = _Health()


def build_middlewares() -> list[Middleware]:
    """Return the middlewares that Ray Serve puts around itself."""
    return [Middleware(RequestGuard)]


def serve_health_directly(application: ASGIApp) -> None:
    """Answer health routes by this application at once: in Ray's queue they would wait behind what they judge."""
    _health.application, _health.loop = application, asyncio.get_running_loop()


class RequestGuard:
    """Every request has a valid id and none of Ray's own headers; every answer has the id and the form of its route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] in _RAYS:
            await self._app(scope, receive, send)
            return
        request_id = _clean_headers(scope)
        answer = _Answer(scope, request_id, send)
        app = _health.find(scope["path"]) or self._app
        try:
            await app(scope, _bound_body(receive, answer.complete), answer.send)
        except Exception:
            if answer.started:
                raise
            log.exception("a request failed before the application had it")
            await answer.refuse(UNEXPECTED)


class RequestIdLeftToRay:
    """The application behind a proxy of Ray without the guard, which adds the request's id by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without_id)


class _Answer:
    """The answer to one request; Ray's own refusals, in plain text, are replaced."""

    def __init__(self, scope: Scope, request_id: bytes, send: Send) -> None:
        self._path: str = scope["path"]
        self._has_body = any(name in _BODY_HEADERS for name, _ in scope["headers"])
        self._request_id = request_id
        self._send = send
        self._replaced = False
        self.started = False
        self.complete = asyncio.Event()

    async def send(self, message: Message) -> None:
        """Send a message of the answer."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and _is_plain(message["headers"]):
                self._replaced = True
                await self.refuse(_REFUSALS.get(message["status"], UNEXPECTED))
                return
            self.started = True
            headers = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
            message = {**message, "headers": [*headers, (b"x-request-id", self._request_id)]}
        if self._replaced:
            return
        if not message.get("more_body", False) and message["type"] == "http.response.body":
            self.complete.set()
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal in the form of the request's route."""
        self.started = True
        media_type, text = refusal.form(self._path)
        body = text.encode()
        headers = [
            (b"content-type", media_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", self._request_id),
        ]
        if self._has_body:
            # Nobody has read it, and the connection would be kept for as long as it comes.
            headers.append((b"connection", b"close"))
        if refusal.status in (429, 503):
            headers.append((b"retry-after", b"1"))
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
        self.complete.set()


def _clean_headers(scope: Scope) -> bytes:
    """Remove the headers that Ray obeys or can't read; set the request's id and return it."""
    kept: list[tuple[bytes, bytes]] = []
    request_id = b""
    for name, value in scope["headers"]:
        plain = name.lower().replace(b"_", b"-")
        if plain == b"x-request-id" and not request_id and _REQUEST_ID.fullmatch(value):
            request_id = value
        if plain not in _STEERING and not plain.startswith(_STEERING_PREFIX) and name.isascii():
            kept.append((name, value))
    request_id = request_id or str(uuid4()).encode()
    scope["headers"] = [*kept, (b"x-request-id", request_id)]
    return request_id


def _bound_body(receive: Receive, complete: asyncio.Event) -> Receive:
    """Return `receive` that takes no more than `MOST_BYTES`; the rest stays on the line."""
    size = 0

    async def receive_bounded() -> Message:
        nonlocal size
        if size > MOST_BYTES:
            await complete.wait()
            return {"type": "http.disconnect"}
        message = await receive()
        size += len(message.get("body", b""))
        return message

    return receive_bounded


def _is_plain(headers: Any) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/plain") for name, value in headers)
