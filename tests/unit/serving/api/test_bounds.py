"""What one request may cost: bodies bounded before they are validated, and in time."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.types import Message

from serving.api import middleware
from serving.api.bodies import MAX_BODY
from serving.api.schemas import fields
from serving.api.schemas.fields import parse
from serving.api.schemas.open_inference import InferRequest
from serving.api.schemas.predictions import PredictBatchRequest, PredictRequest
from serving.api.schemas.search import SimilarRequest
from serving.api.uploads import LEAST_RATE, UploadLimits
from serving.core.caller import Role
from serving.errors import Invalid, Overloaded, ServingError, TooLarge, TooSlow
from tests.support.app import Platform, fake_platform

pytestmark = pytest.mark.anyio


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


def _filled(start: bytes, item: bytes, end: bytes) -> bytes:
    count = (MAX_BODY - len(start) - len(end)) // len(item)
    return start + item * (count - 1) + item.rstrip(b",") + end


def _members(count: int) -> bytes:
    return json.dumps({"text": "good"} | {str(number): 0 for number in range(count)}).encode()


INFER = b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":["good"]}],"outputs":['


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (InferRequest, _filled(INFER, b"{},", b"]}")),
        (InferRequest, _filled(INFER, b'{"name":"label"},', b"]}")),
        (InferRequest, _filled(b'{"parameters":{"x":[', b"[],", b"]}," + INFER[1:] + b"]}")),
        (PredictRequest, _members(150_000)),
        (PredictRequest, _filled(b'{"text":[', b'"\\"",', b"]}")),
        (PredictBatchRequest, _filled(b'{"texts":[', b"0,", b"]}")),
        (SimilarRequest, _filled(b'{"like":[', b"{},", b"]}")),
    ],
)
def test_a_body_of_very_many_values_is_refused_before_pydantic_sees_it(
    monkeypatch: pytest.MonkeyPatch, shape: type[BaseModel], body: bytes
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it is validated")

    monkeypatch.setattr(shape, "model_validate_json", never)
    with pytest.raises(TooLarge, match="50,000 values"):
        parse(shape, body)


def test_faults_are_counted_before_they_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[object] = []
    monkeypatch.setattr(fields, "to_problems", lambda faults, *_: listed.append(faults) or ())
    with pytest.raises(Invalid, match="20,000 faults") as refused:
        parse(PredictRequest, _members(20_000))
    assert (refused.value.problems, listed) == ((), [])


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (PredictBatchRequest, {"texts": ['a "b", {c}: [d], \\ ' * 90] * 1000}),
        (PredictBatchRequest, {"texts": ["a, b, c, " * 200] * 1000}),
        (
            SimilarRequest,
            {name: [{"embedding": [0.0625] * 384}] * 20 for name in ("like", "unlike")},
        ),
    ],
)
def test_the_largest_valid_bodies_are_read(shape: type[BaseModel], body: Any) -> None:
    content = json.dumps(body).encode()
    assert 50_000 < len(content) <= MAX_BODY
    parse(shape, content)


async def test_a_thousand_wrong_texts_are_listed_and_more_texts_are_too_many(platform: Platform) -> None:
    async with platform.client() as client:
        wrong = await client.post("/v1/predict/batch", json={"texts": [""] * 1000})
        many = await client.post("/v1/predict/batch", json={"texts": ["good"] * 1001})
    assert (wrong.status_code, len(wrong.json()["errors"]), many.status_code) == (422, 20, 413)


async def test_the_body_of_a_token_request_is_small(platform: Platform) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    async with platform.client(None) as client:
        fits = await client.post("/v1/token", content=b"a=" + b"b" * 8000, headers=form)
        large = await client.post("/v1/token", content=b"a=" + b"b" * 8192, headers=form)
    assert (fits.status_code, large.status_code) == (400, 413)


async def test_a_length_of_thousands_of_digits_is_no_error_of_the_platform(platform: Platform) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": "9" * 5000}
    async with platform.client() as client:
        answer = await client.post("/v1/predict", content=b"{}", headers=headers)
    assert answer.status_code == 422


async def test_a_query_of_very_many_parameters_is_refused_before_it_is_read(platform: Platform) -> None:
    async with platform.client() as client:
        fits = await client.get("/v1/predictions?" + "&".join(["limit=1"] * 100))
        many = await client.get("/v1/predictions?" + "&".join(["limit=1"] * 101))
        public = await client.get("/health/live?" + "&" * 5000)
    assert (fits.status_code, many.status_code, public.status_code) == (200, 422, 422)
    assert "100 parameters" in many.json()["detail"]


def _silent() -> tuple[list[Message], Any]:
    """Return the messages of a client and its `receive`, which then waits for ever."""
    messages: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        return await asyncio.get_running_loop().create_future()

    return messages, receive


async def test_a_body_that_does_not_come_is_408(platform: Platform) -> None:
    impatient = replace(platform.services, uploads=UploadLimits(prompt_seconds=0.01, grace_seconds=0.02))
    platform.app.state.services = impatient
    answers = {}
    for path, media_type, key in (
        ("/v1/predict", b"application/json", platform.keys[Role.CLIENT].text),
        ("/v1/token", b"application/x-www-form-urlencoded", ""),
        ("/v2/models/sentiment/infer", b"application/json", platform.keys[Role.CLIENT].text),
        ("/v1/embeddings", b"application/json", platform.keys[Role.CLIENT].text),
    ):
        messages, receive = _silent()
        messages.append({"type": "http.request", "body": b"{", "more_body": True})
        sent: list[Message] = []

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        headers = [(b"content-type", media_type), (b"authorization", b"Bearer " + key.encode())]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
        }
        async with asyncio.timeout(10):
            await platform.app(scope, receive, send)
        answers[path] = (
            sent[0]["status"],
            dict(sent[0]["headers"])[b"connection"],
            json.loads(sent[1]["body"]),
        )
    assert {status for status, *_ in answers.values()} == {408}
    assert {connection for _, connection, _ in answers.values()} == {b"close"}
    assert answers["/v1/predict"][2]["type"] == "urn:valence:problem:too-slow"
    assert "error" in answers["/v1/embeddings"][2]


async def _refused(platform: Platform, path: str, pieces: list[Message], key: str = "") -> dict[bytes, bytes]:
    """Return the headers of the answer to a POST of which only these pieces have come."""
    messages, receive = _silent()
    messages += pieces
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"2000"),
        (b"x-api-key", key.encode()),
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "root_path": "",
        "headers": headers,
    }
    async with asyncio.timeout(10):
        await platform.app(scope, receive, send)
    assert sent[0]["status"] in (401, 404, 405, 413)
    return dict(sent[0]["headers"])


@pytest.mark.parametrize("path", ["/v1/predict", "/nowhere", "/health/live"])
async def test_an_early_refusal_ends_the_connection_unless_the_body_is_there(
    platform: Platform, path: str
) -> None:
    begun: Message = {"type": "http.request", "body": b"{", "more_body": True}
    rest: Message = {"type": "http.request", "body": b"}", "more_body": False}
    assert (await _refused(platform, path, []))[b"connection"] == b"close"
    assert (await _refused(platform, path, [begun]))[b"connection"] == b"close"
    whole = await _refused(platform, path, [begun, rest])
    # Of a stranger's body nothing is read, so it isn't known.
    assert (b"connection" in whole) is (path == "/v1/predict")


async def test_a_refusal_in_the_middle_of_a_body_ends_the_connection(platform: Platform) -> None:
    large: Message = {"type": "http.request", "body": b"x" * (MAX_BODY + 1), "more_body": True}
    key = platform.keys[Role.CLIENT].text
    assert (await _refused(platform, "/v1/predict", [large], key))[b"connection"] == b"close"


async def test_an_answer_that_its_client_does_not_take_is_given_up(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(middleware, "LEAST_RATE", 2**30)
    taken: list[Message] = []

    async def take_little(message: Message) -> None:
        taken.append(message)
        if len(taken) > 3:
            await asyncio.get_running_loop().create_future()

    path = "/docs/swagger-ui-bundle.js"
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "root_path": "",
        "headers": [],
    }
    async with asyncio.timeout(10):
        await platform.app(scope, _silent()[1], take_little)
    assert (taken[0]["status"], len(taken)) == (200, 4)


async def _read_of(limits: UploadLimits, key: Any = None) -> ServingError:
    _, receive = _silent()
    with limits.open(receive, key) as upload, pytest.raises(ServingError) as refused:
        await upload.receive(0)
    return refused.value


async def test_a_key_has_few_slow_bodies_at_once_and_leaves_room_for_others() -> None:
    limits = UploadLimits(most=2, prompt_seconds=0.0, grace_seconds=0.2)
    ends = await asyncio.gather(*(_read_of(limits, "mine") for _ in range(5)), _read_of(limits, "yours"))
    assert [type(end) for end in ends].count(Overloaded) == 3
    assert type(ends[-1]) is TooSlow
    assert type(await _read_of(limits, "mine")) is TooSlow, "the places are free again"


def test_two_mebibytes_at_256_kilobits_come_in_time() -> None:
    limits, chunk = UploadLimits(), 16 * 1024
    for size in range(0, MAX_BODY + 1, chunk):
        arrives = (size + chunk) / (256_000 / 8)
        assert arrives < limits.deadlines(0.0, size)[1]
    assert limits.deadlines(0.0, 0)[1] <= 10
    assert LEAST_RATE < 256_000 / 8
