"""Bodies of requests over fakes: media types, compression and size."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterable

import httpx
import pytest

from serving.api.bodies import MAX_BODY
from serving.core.caller import Role
from tests.support.app import Platform, fake_platform

pytestmark = pytest.mark.anyio

BODY = json.dumps({"text": "good"}).encode()
ZIPPED = gzip.compress(BODY, mtime=0)


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


async def _pieces(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _predict(
    platform: Platform, content: bytes | AsyncIterator[bytes], **headers: str
) -> httpx.Response:
    sent = {"content-type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    async with platform.client() as client:
        return await client.post("/v1/predict", content=content, headers=sent)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "APPLICATION/JSON",
        "application/json;",
        "application/json; charset=utf-8;",
        'application/json;charset="UTF-8"',
        "application/json; charset=us-ascii",
        "application/json; odata.metadata=none; charset=utf-8",
        "application/json; format=pandas-split",
        'application/json; profile="https://example.org/a;charset=latin-1"',
        "application/json ; profile=x",
    ],
)
async def test_parameters_of_the_content_type_mean_nothing(platform: Platform, content_type: str) -> None:
    assert (await _predict(platform, BODY, content_type=content_type)).status_code == 201


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/jsonp",
        "application/json; charset=latin-1",
        "json",
        "",
        "application/json, x",
    ],
)
async def test_another_content_type_is_415_and_says_which_one_is_read(
    platform: Platform, content_type: str
) -> None:
    answer = await _predict(platform, BODY, content_type=content_type)
    assert (answer.status_code, answer.headers["accept"]) == (415, "application/json")


async def test_a_form_s_type_may_have_parameters_too(platform: Platform) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8; x=y"}
    async with platform.client(None) as client:
        read = await client.post("/v1/token", content=b"grant_type=password", headers=headers)
        other = await client.post("/v1/token", json={})
    assert (read.json()["error"], other.status_code) == ("invalid_request", 415)
    assert other.headers["accept"] == "application/x-www-form-urlencoded"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", " gzip "])
async def test_a_body_in_gzip_is_decompressed(platform: Platform, encoding: str) -> None:
    whole = await _predict(platform, ZIPPED, content_encoding=encoding)
    torn = await _predict(platform, _pieces(bytes([each]) for each in ZIPPED), content_encoding=encoding)
    assert (whole.status_code, torn.status_code) == (201, 201)
    assert whole.json()["text_id"] == torn.json()["text_id"]


@pytest.mark.parametrize("encoding", ["deflate", "br", "zstd", "gzip, gzip", "compress"])
async def test_another_compression_is_415_and_says_which_one_is_read(
    platform: Platform, encoding: str
) -> None:
    answer = await _predict(platform, zlib.compress(BODY), content_encoding=encoding)
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip")


@pytest.mark.parametrize("content", [BODY, ZIPPED[:-9], ZIPPED + b"x", ZIPPED + ZIPPED, b"\x1f\x8b"])
async def test_a_body_that_isnt_gzip_is_422(platform: Platform, content: bytes) -> None:
    answer = await _predict(platform, content, content_encoding="gzip")
    assert (answer.status_code, "gzip" in answer.json()["detail"]) == (422, True)


async def test_an_optional_body_may_be_empty_and_in_gzip(platform: Platform) -> None:
    async with platform.client(Role.ENGINEER) as client:
        answer = await client.post(
            "/v1/models/sentiment/rollback",
            content=b"",
            headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
        )
    assert answer.status_code == 409


async def test_a_body_over_the_limit_is_413_announced_or_not(platform: Platform) -> None:
    announced = await _predict(platform, b"x" * (MAX_BODY + 1))
    streamed = await _predict(platform, _pieces([b"x" * (MAX_BODY // 2)] * 3))
    assert (announced.status_code, streamed.status_code) == (413, 413)


async def test_the_limit_holds_for_what_is_decompressed(platform: Platform) -> None:
    padding = b" " * (MAX_BODY - len(BODY))
    full = await _predict(platform, gzip.compress(BODY + padding), content_encoding="gzip")
    bomb = await _predict(platform, gzip.compress(BODY + padding + b" "), content_encoding="gzip")
    assert (full.status_code, bomb.status_code) == (201, 413)


async def test_the_same_body_in_gzip_is_the_same_request(platform: Platform) -> None:
    plain = await _predict(platform, BODY, idempotency_key="once")
    zipped = await _predict(platform, ZIPPED, idempotency_key="once", content_encoding="gzip")
    assert (zipped.content, zipped.headers["idempotency-replayed"]) == (plain.content, "true")


async def test_two_headers_of_compression_are_two_layers(platform: Platform) -> None:
    async with platform.client() as client:
        answer = await client.post(
            "/v1/predict",
            content=gzip.compress(ZIPPED),
            headers=[
                *client.headers.multi_items(),
                ("Content-Type", "application/json"),
                ("Content-Encoding", "gzip"),
                ("Content-Encoding", "gzip"),
            ],
        )
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip")
