"""The outermost layer: request ids, HEAD, CORS, the access log, counters, and the last exception handler.

Plain ASGI, because every request passes here. Logs ids and route templates, never a path or a body.
"""

import asyncio
import re
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import Any, Final, TypeVar
from uuid import uuid4

import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.addresses import client_address
from serving.api.bodies import MAX_BODY, announces_body
from serving.api.dependencies import RequestContext, get_header
from serving.api.errors import ClientDisconnected, build_unexpected_response
from serving.api.uploads import GRACE_SECONDS, LEAST_RATE
from serving.core.logs import REQUEST_ID
from serving.core.tracing import Spans, record_route
from serving.monitoring.metrics import Metrics

log = structlog.get_logger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLIENT_CLOSED: Final = 499
_AT_ONCE: Final = 16 * 1024
_CLOSE: Final = (b"connection", b"close")
_NO_SNIFF: Final = (b"x-content-type-options", b"nosniff")
_NO_STORE: Final = (b"cache-control", b"no-store")
# The same for everybody, so they may be kept.
_PAGES: Final = ("/docs", "/console", "/openapi.json")
_REFUSED: Final = frozenset({401, 403, 429})
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_EXPOSED: Final = (
    "X-Request-Id",
    "Retry-After",
    "Server-Timing",
    "Idempotency-Replayed",
    "WWW-Authenticate",
    "Inference-Header-Content-Length",
)
_PREFLIGHT_SECONDS: Final = 600

Result = TypeVar("Result")


class RequestMiddleware:
    """Every response has `X-Request-Id`; every request ends with a response, a log line and counts."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        spans: Spans | None = None,
        origins: Sequence[str] = (),
        proxies: int = 0,
    ) -> None:
        self._app = _allow_origins(app, origins)
        self._origins = origins
        self._metrics = metrics
        self._spans = spans
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent_id = get_header(scope, b"x-request-id")
        request_id = sent_id if sent_id and _REQUEST_ID.fullmatch(sent_id) else str(uuid4())
        scope["valence.request"] = RequestContext(request_id)
        previous = REQUEST_ID.set(request_id)
        try:
            method: str = scope["method"]
            if method == "HEAD":
                # Answered by the route of GET, without the body (RFC 9110, 9.3.2).
                scope, send = {**scope, "method": "GET"}, _without_body(send)
            if self._spans is None:
                await self._serve(scope, receive, send, request_id, method)
                return
            with self._spans.request(request_id, method, get_header(scope, b"traceparent")) as span:
                status = await self._serve(scope, receive, send, request_id, method)
                record_route(span, method, _route(scope), status)
        finally:
            REQUEST_ID.reset(previous)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str, method: str) -> int:
        """Answer, count and log the request. Return the status."""
        id_header = (b"x-request-id", request_id.encode())
        status = 0
        started = perf_counter()
        deliver = _LargeAnswer(send).send

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _complete(message["headers"], id_header, scope["path"])
                if not await _is_body_there(scope, receive, status):
                    message["headers"].append(_CLOSE)
            await (deliver if _is_large(message) else send)(message)

        self._metrics.start_request()
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnected:
            status = _CLIENT_CLOSED
        except Exception as error:
            if status:
                raise
            response = build_unexpected_response(scope, error)
            await _allow_origins(response, self._origins)(scope, receive, send_with_id)
        finally:
            seconds = perf_counter() - started
            route = _route(scope)
            caller = RequestContext.of(scope).caller
            self._metrics.end_request(method, route, status or _CLIENT_CLOSED, seconds)
            (log.info if status >= 400 else log.debug)(
                "request",
                request_id=request_id,
                method=method,
                route=route,
                status=status,
                ms=round(seconds * 1e3, 2),
                key_id=str(caller.key_id) if caller else None,
                # Whoever isn't let in has no other name.
                **({"address": client_address(scope, self._proxies)} if status in _REFUSED else {}),
            )
        return status or _CLIENT_CLOSED


class _LargeAnswer:
    """An answer that its client must take at the least rate of a body, with as long to begin."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started: float | None = None
        self._size = 0

    async def send(self, message: Message) -> None:
        """Send a part of the body. Raise ClientDisconnected if the client doesn't take it in time."""
        if self._started is None:
            self._started = asyncio.get_running_loop().time()
        self._size += len(message["body"])
        try:
            async with asyncio.timeout_at(self._started + GRACE_SECONDS + self._size / LEAST_RATE):
                await self._send(message)
        except TimeoutError:
            raise ClientDisconnected from None


def _is_large(message: Message) -> bool:
    """Return whether this may have to wait for its client."""
    body = message.get("body", b"")
    return bool(body) and (message.get("more_body", False) or len(body) > _AT_ONCE)


async def _is_body_there(scope: Scope, receive: Receive, status: int) -> bool:
    """Return whether the whole body has come: else the connection must end, or it is a place that anybody may keep.

    Nothing is read for a caller who isn't let in.
    """
    if RequestContext.of(scope).body_is_read or not announces_body(scope):
        return True
    if status in (401, 403):
        return False
    try:
        async with asyncio.timeout(0):
            size = 0
            while size <= MAX_BODY:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return True
                size += len(message["body"])
    except TimeoutError:
        pass
    return False


def _complete(
    headers: list[tuple[bytes, bytes]], id_header: tuple[bytes, bytes], path: str
) -> list[tuple[bytes, bytes]]:
    """Return the headers with the request's id, and with what keeps browsers and caches from guessing."""
    added = [id_header, _NO_SNIFF]
    if not path.startswith(_PAGES) and not any(name == b"cache-control" for name, _ in headers):
        added.append(_NO_STORE)
    return [*headers, *added]


def _allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let pages of these origins read the answers of `app` (CORS); they send their key in a header, never a cookie."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        max_age=_PREFLIGHT_SECONDS,
    )


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] != "http.response.start":
            message = {
                "type": "http.response.body",
                "body": b"",
                "more_body": message.get("more_body", False),
            }
        await send(message)

    return send_head


def _route(scope: Scope) -> str:
    """Return the route's template: there are few of them, but any number of paths."""
    route: str = getattr(scope.get("route"), "path", "none")
    return route


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the work's result; cancel the work if the client disconnects first.

    Raises:
        ClientDisconnected: the client closed the connection.
    """
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected
    finally:
        disconnected.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
