"""OpenAI's routes over fakes: its sizes, its refusals and its list of models. `tests/clients` runs its clients."""

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest

from serving.api.bodies import MAX_BODY
from serving.core.caller import Role
from serving.errors import Overloaded
from tests.support.app import Platform, fake_platform

pytestmark = pytest.mark.anyio

MODEL = "test-space"


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


async def _embed(platform: Platform, **members: Any) -> Any:
    async with platform.client() as client:
        return await client.post("/v1/embeddings", json={"model": MODEL} | members)


async def test_as_many_texts_are_embedded_as_openai_takes(platform: Platform) -> None:
    most = await _embed(platform, input=["good"] * 2048)
    more = await _embed(platform, input=["good"] * 2049)
    assert (most.status_code, len(most.json()["data"])) == (200, 2048)
    assert (more.status_code, more.json()["error"]["type"]) == (400, "invalid_request_error")
    assert more.json()["error"]["message"] == "2049 texts are too many: send at most 2048"


async def test_a_body_of_16_mib_is_read_and_a_larger_one_refused(platform: Platform) -> None:
    content = json.dumps({"model": MODEL, "input": ["é" * 4_000] * 600}).encode()
    headers = {"Content-Type": "application/json"}
    async with platform.client() as client:
        large = await client.post("/v1/embeddings", content=content.ljust(16 * 2**20), headers=headers)
        larger = await client.post("/v1/embeddings", content=content.ljust(16 * 2**20 + 1), headers=headers)
        elsewhere = await client.post("/v1/predict", content=content, headers=headers)
    assert len(content) > 14 * 10**6
    assert [each.status_code for each in (large, larger, elsewhere)] == [200, 413, 413]
    assert larger.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("zipped", [False, True])
async def test_few_large_bodies_of_one_key_are_in_memory_at_once(platform: Platform, zipped: bool) -> None:
    content = json.dumps({"model": MODEL, "input": "good"}).encode().ljust(MAX_BODY + 1)
    headers = {"Content-Type": "application/json"}
    if zipped:
        content, headers = gzip.compress(content), headers | {"Content-Encoding": "gzip"}
    key_id = platform.keys[Role.CLIENT].id
    with ExitStack() as held:
        for _ in range(8):
            held.enter_context(platform.services.uploads.open(_never, key_id)).grow_large()
        async with platform.client() as client, platform.client(Role.ENGINEER) as other:
            refused = await client.post("/v1/embeddings", content=content, headers=headers)
            others = await other.post("/v1/embeddings", content=content, headers=headers)
            small = await client.post("/v1/embeddings", json={"model": MODEL, "input": "good"})
    async with platform.client() as client:
        after = [await client.post("/v1/embeddings", content=content, headers=headers) for _ in range(10)]
    assert [each.status_code for each in (refused, others, small)] == [429, 200, 200]
    assert int(refused.headers["retry-after"]) >= 1
    assert {each.status_code for each in after} == {200}


async def _never() -> Any:
    raise AssertionError


TOKENS: list[Any] = [[1, 2, 3], [[1, 2], [3]], ["a text", 5], [["a text"]], [[]], [1.5], [True], 5]


@pytest.mark.parametrize("tokens", TOKENS)
async def test_token_ids_are_refused_with_what_to_send_instead(platform: Platform, tokens: Any) -> None:
    answer = await _embed(platform, input=tokens)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, "input", "invalid_request_error")
    assert "send text" in error["message"]
    assert "check_embedding_ctx_length=False" in error["message"]


async def test_more_token_ids_than_a_body_may_hold_are_refused_as_token_ids(platform: Platform) -> None:
    answer = await _embed(platform, input=[[7] * 600] * 100)
    assert answer.status_code == 400
    assert "token ids" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "members",
    [
        {"input": ""},
        {"input": []},
        {"input": ["good", " "]},
        {"input": None},
        {"input": "good", "dimensions": 128},
        {"input": "good", "dimensions": 1536},
        {"input": "good", "encoding_format": "int8"},
        {"input": "good", "unknown": 1},
        {"input": "good", "model": ""},
    ],
)
async def test_what_cant_be_embedded_is_a_bad_request(platform: Platform, members: dict[str, Any]) -> None:
    answer = await _embed(platform, **members)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_other_dimensions_are_refused_with_the_right_ones(platform: Platform) -> None:
    error = (await _embed(platform, input="good", dimensions=128)).json()["error"]
    assert (error["param"], "384" in error["message"]) == ("dimensions", True)


@pytest.mark.parametrize(
    "members",
    [
        {"encoding_format": None},
        {"encoding_format": "float", "dimensions": None, "user": None},
        {"dimensions": 384, "user": ""},
        {"encoding_format": "base64", "user": "u" * 1000},
    ],
)
async def test_members_may_be_null_and_the_user_is_anything(
    platform: Platform, members: dict[str, Any]
) -> None:
    assert (await _embed(platform, input="good", **members)).status_code == 200


async def test_a_vector_of_the_beginning_of_a_text_says_so(platform: Platform) -> None:
    for encoding in ("float", "base64"):
        answer = await _embed(platform, input=["good", "good " * 600], encoding_format=encoding)
        assert [each.get("truncated") for each in answer.json()["data"]] == [None, True]


async def test_a_vector_of_a_text_that_the_encoder_does_not_know_says_so(platform: Platform) -> None:
    answer = await _embed(platform, input=["good", "👎"])
    assert [each.get("mostly_unknown") for each in answer.json()["data"]] == [None, True]


async def test_refusals_have_the_statuses_of_openai_s_errors(platform: Platform) -> None:
    body = {"model": MODEL, "input": "good"}
    async with platform.client(None) as stranger, platform.client() as client:
        unknown = await stranger.post("/v1/embeddings", json=body)
        absent = await client.post("/v1/embeddings", json=body | {"model": "gpt"})
        malformed = await client.post(
            "/v1/embeddings", content=b"{", headers={"Content-Type": "application/json"}
        )
        queried = await client.post("/v1/embeddings?" + "&" * 200, json=body)
        platform.encoders.fault = Overloaded("full", retry_after=7)
        full = await client.post("/v1/embeddings", json=body)
    statuses = [each.status_code for each in (unknown, absent, malformed, queried, full)]
    assert statuses == [401, 404, 400, 400, 429]
    assert [each.json()["error"]["type"] for each in (unknown, absent, full)] == [
        "authentication_error",
        "invalid_request_error",
        "rate_limit_error",
    ]
    assert full.headers["retry-after"] == "7"


async def test_the_document_has_the_statuses_of_openai_s_errors(platform: Platform) -> None:
    statuses = platform.app.openapi()["paths"]["/v1/embeddings"]["post"]["responses"]
    assert set(statuses) == {"200", "400", "401", "404", "408", "413", "415", "429", "500", "503"}


async def test_models_are_listed_as_openai_does_beside_our_own_list(platform: Platform) -> None:
    async with platform.client(Role.ENGINEER) as client:
        models = (await client.get("/v1/models")).json()
    assert models["items"] == [{"name": "sentiment", "languages": ["en"]}]
    assert models["object"] == "list"
    assert models["data"] == [
        {"id": "sentiment", "object": "model", "created": 1767225600, "owned_by": "valence"},
        {"id": MODEL, "object": "model", "created": 1767225600, "owned_by": "valence"},
    ]


async def test_each_listed_model_is_retrieved_and_can_embed(platform: Platform) -> None:
    async with platform.client(Role.ENGINEER) as client:
        for listed in (await client.get("/v1/models")).json()["data"]:
            one = (await client.get(f"/v1/models/{listed['id']}")).json()
            answer = await client.post("/v1/embeddings", json={"model": listed["id"], "input": "good"})
            assert {name: one[name] for name in listed} == listed
            assert (one["name"], answer.status_code) == (listed["id"], 200)
        ours = (await client.get("/v1/models/sentiment")).json()
        absent = await client.get("/v1/models/gpt-4")
    assert [each["version"] for each in ours["versions"]] == ["4", "3", "2", "1"]
    assert absent.status_code == 404
