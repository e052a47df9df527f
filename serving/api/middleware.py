"""The outermost layer: request ids, the access log, counters, and the last net under every exception.

Plain ASGI, because every request passes here. Logs ids and route templates, never a path or a body.
"""

import asyncio
import re
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Final, TypeVar
from uuid import uuid4

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.dependencies import Exchange, header
from serving.api.errors import ClientLeft, unexpected
from serving.core.logs import REQUEST_ID
from serving.core.tracing import Spans, record_route
from serving.monitoring.metrics import Metrics

log = structlog.get_logger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LEFT: Final = 499

Result = TypeVar("Result")


class Edge:
    """Every answer carries `X-Request-Id`; every request ends in an answer, a log line and the counters."""

    def __init__(self, app: ASGIApp, metrics: Metrics, spans: Spans | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if given and _REQUEST_ID.fullmatch(given) else str(uuid4())
        scope["valence.exchange"] = Exchange(request_id)
        before = REQUEST_ID.set(request_id)
        try:
            if self._spans is None:
                await self._serve(scope, receive, send, request_id)
                return
            with self._spans.request(request_id, scope["method"], header(scope, b"traceparent")) as span:
                status = await self._serve(scope, receive, send, request_id)
                record_route(span, scope["method"], _route(scope), status)
        finally:
            REQUEST_ID.reset(before)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        """Answer, count, log; the status that was answered."""
        stamp = (b"x-request-id", request_id.encode())
        status = 0
        started = perf_counter()

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], stamp]
            await send(message)

        self._metrics.start_request()
        try:
            await self._app(scope, receive, stamped)
        except ClientLeft:
            status = _LEFT
        except Exception as error:
            if status:
                raise
            await unexpected(scope, error)(scope, receive, stamped)
        finally:
            seconds = perf_counter() - started
            route = _route(scope)
            caller = Exchange.of(scope).caller
            self._metrics.end_request(scope["method"], route, status or _LEFT, seconds)
            (log.info if status >= 400 else log.debug)(
                "request",
                request_id=request_id,
                method=scope["method"],
                route=route,
                status=status,
                ms=round(seconds * 1e3, 2),
                key_id=str(caller.key_id) if caller else None,
            )
        return status or _LEFT


def _route(scope: Scope) -> str:
    """The route's template, which is bounded, where a path is not."""
    route: str = getattr(scope.get("route"), "path", "none")
    return route


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result, unless the client leaves first: then the work is cancelled.

    Raises:
        ClientLeft: nobody waits any more.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        left.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
