"""The guard before Ray's own code, alone and around Ray's own middleware."""

import asyncio
import json
from typing import Any

import pytest
from ray.serve._private import http_util
from ray.serve._private.http_util import configure_http_middlewares, convert_object_to_asgi_messages
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import bodies
from serving.deployments import request_guard
from serving.deployments.cluster import build_environment
from serving.deployments.request_guard import CALLBACK, MOST_BYTES, serve_health_directly
from serving.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray find the guard as it does in its own processes."""
    monkeypatch.setattr(http_util, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", CALLBACK)
    monkeypatch.setattr(request_guard, "_health", request_guard._Health())


def around(app: ASGIApp) -> ASGIApp:
    """Return the application as Ray serves it."""
    wrapped: ASGIApp = http_util._apply_middlewares(
        app, configure_http_middlewares(HTTPOptions()).middlewares
    )
    return wrapped


async def ask(
    app: ASGIApp, path: str = "/v1/predict", headers: Any = (), receive: Receive | None = None
) -> tuple[int, list[tuple[bytes, bytes]], bytes, Scope]:
    """Return the status, the headers and the body of the answer, and the scope as the application saw it."""
    sent: list[Message] = []
    scope: Scope = {
        "type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "headers": list(headers),
    }  # fmt: skip

    async def nothing() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(10):
        await around(app)(scope, receive or nothing, send)
    assert [message["type"] for message in sent][:1] == ["http.response.start"]
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], sent[0]["headers"], body, scope


def answering(status: int, content: str | dict[str, str], headers: Any = None) -> ASGIApp:
    """Return an application that answers as Ray's own code does."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in convert_object_to_asgi_messages(content, status, headers):
            await send(message)

    return app


def test_every_process_of_ray_gets_the_guard(tmp_path: Any) -> None:
    for haproxy in ("on", "off"):
        names = build_environment(Settings(home=tmp_path, haproxy=haproxy))
        assert names["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == CALLBACK


async def test_ray_s_headers_are_taken_off_and_the_id_is_one_that_ray_can_read() -> None:
    status, headers, _, scope = await ask(
        answering(200, {"a": "b"}),
        headers=[
            (b"x-request-timeout-seconds", b"0.001"),
            (b"X-Request-Disconnect-Disabled", b"?1"),
            (b"serve_multiplexed_model_id", b"\xff"),
            (b"serve-multiplexed-model-id", b"x"),
            (b"x_session_id", b"\xff"),
            (b"x-serve-router-target", b"x"),
            (b"x-\xff", b"x"),
            (b"x-request-id", b"a\xff"),
            (b"x-request-id", b"mine"),
            (b"authorization", b"Bearer \xff"),
        ],
    )
    assert scope["headers"] == [(b"authorization", b"Bearer \xff"), (b"x-request-id", b"mine")]
    assert (status, [value for name, value in headers if name.lower() == b"x-request-id"]) == (200, [b"mine"])


@pytest.mark.parametrize("sent", [b"", b"a b", b"\xff", b"a" * 129])
async def test_an_id_that_nobody_could_read_is_replaced(sent: bytes) -> None:
    _, headers, _, scope = await ask(answering(200, {}), headers=[(b"x-request-id", sent)])
    (given,) = [value for name, value in headers if name.lower() == b"x-request-id"]
    assert dict(scope["headers"])[b"x-request-id"] == given != sent


@pytest.mark.parametrize(
    ("status", "told", "name"),
    [
        (404, 404, "not-found"),
        (408, 503, "not-ready"),
        (429, 429, "overloaded"),
        (503, 503, "not-ready"),
        (500, 500, "unexpected"),
    ],
)
async def test_what_ray_answers_in_plain_text_is_told_as_a_problem(status: int, told: int, name: str) -> None:
    answered, headers, body, _ = await ask(answering(status, "Request dropped due to backpressure"))
    problem = json.loads(body)
    given = {key.lower(): value for key, value in headers}
    assert (answered, problem["type"]) == (told, f"urn:valence:problem:{name}")
    assert (given[b"content-type"], given[b"content-length"]) == (
        b"application/problem+json",
        b"%d" % len(body),
    )
    assert (b"x-request-id" in given, given.get(b"retry-after")) == (
        True,
        b"1" if told in (429, 503) else None,
    )


@pytest.mark.parametrize("path", ["/v2/models/a/infer", "/v1/embeddings", "/v1/token"])
async def test_each_protocol_has_its_form(path: str) -> None:
    _, headers, body, _ = await ask(answering(503, "Request dropped"), path)
    assert ((b"content-type", b"application/json") in headers, "error" in json.loads(body)) == (True, True)


async def test_an_exception_before_the_application_is_a_problem_and_no_plain_text() -> None:
    async def broken(*_: object) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    status, _, body, _ = await ask(broken)
    assert (status, json.loads(body)["status"]) == (500, 500)


async def test_a_refusal_ends_the_connection_of_a_body_that_nobody_reads() -> None:
    _, without, _, _ = await ask(answering(503, "Request dropped"))
    _, given, _, _ = await ask(answering(503, "Request dropped"), headers=[(b"content-length", b"5")])
    assert ((b"connection", b"close") in without, (b"connection", b"close") in given) == (False, True)


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
async def test_what_ray_s_proxies_ask_is_left_alone(path: str) -> None:
    status, _, body, _ = await ask(answering(503, "draining"), path)
    assert (status, body) == (503, b"draining")


async def test_the_application_s_own_answers_are_left_alone() -> None:
    async def metrics(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; version=1.0.0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"a ", "more_body": True})
        await send({"type": "http.response.body", "body": b"1"})

    assert (await ask(metrics, "/metrics"))[2] == b"a 1"


async def test_health_does_not_wait_in_ray_s_queue() -> None:
    async def full(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    serve_health_directly(answering(200, {"status": "live"}))
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        assert (await ask(full, path))[0] == 200
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await around(full)({"type": "http", "path": "/v1/predict", "headers": []}, full, full)


async def test_a_body_is_not_read_without_end() -> None:
    taken = 0

    async def endless() -> Message:
        nonlocal taken
        taken += 2**20
        return {"type": "http.request", "body": bytes(2**20), "more_body": True}

    async def greedy(_scope: Scope, receive: Receive, send: Send) -> None:
        async def read() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        reading = asyncio.create_task(read())
        await asyncio.wait([reading], timeout=0.05)
        for message in convert_object_to_asgi_messages({}, 413, None):
            await send(message)
        await reading

    assert (await ask(greedy, receive=endless))[0] == 413
    assert MOST_BYTES <= taken <= MOST_BYTES + 2**20
    assert bodies.MAX_BODY < MOST_BYTES
