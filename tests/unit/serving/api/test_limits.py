"""What a key and an address may ask for: charged by work, and told by address."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from serving.accounts.authentication import generate_key
from serving.api.addresses import client_address
from serving.api.security import GuardedRoute
from serving.core.caller import Role
from tests.support.app import Platform, add_key, fake_platform

pytestmark = pytest.mark.anyio


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform(proxies=1) as running:
        yield running


async def limited(platform: Platform, rate: float) -> str:
    return (await add_key(platform.key_records, Role.CLIENT, rate=rate)).text


@pytest.mark.parametrize(
    ("body", "work"),
    [
        ({"text": "good"}, 1),
        ({"embedding": [0.5] * 384}, 1),
        ({"text": "good", "like": [{"text": "a"}] * 3, "unlike": [{"text": "b"}] * 2}, 6),
        ({"text": "good", "exact": True}, 10),
        ({"like": [{"embedding": [0.5] * 384}]}, 1),
    ],
)
async def test_a_search_costs_the_texts_that_are_embedded_and_more_if_exact(
    platform: Platform, body: dict[str, Any], work: int
) -> None:
    key = await limited(platform, 10)
    async with platform.client(key=key) as client:
        assert (await client.post("/v1/similar", json=body)).status_code == 200
        rest = await client.post("/v1/predict/batch", json={"texts": ["good"] * (10 - work + 1)})
        fits = await client.post("/v1/predict/batch", json={"texts": ["good"] * (10 - work or 1)})
    assert rest.status_code == 429
    assert fits.status_code == (429 if work == 10 else 201)


async def test_judgements_and_lists_are_not_free_and_do_not_use_up_predictions(platform: Platform) -> None:
    key = await limited(platform, 1)
    async with platform.client(key=key) as client:
        made = (await client.post("/v1/predict", json={"text": "good"})).json()
        judgement = {"prediction_id": made["id"], "is_correct": True}
        judged = [(await client.post("/v1/feedback", json=judgement)).status_code for _ in range(5)]
        listed = [(await client.get("/v1/predictions")).status_code for _ in range(5)]
        refused = await client.get("/v1/predictions")
        platform.clock.ahead += 1
        again = await client.post("/v1/predict", json={"text": "good"})
    assert (judged, listed) == ([201] * 5, [200] * 5)
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:valence:problem:rate-limited")
    assert again.status_code == 201


async def test_every_route_with_a_role_is_charged(platform: Platform) -> None:
    by_texts = {
        "/v1/predict",
        "/v1/predict/batch",
        "/v1/similar",
        "/v1/duplicates",
        "/v1/embeddings",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
        "/v1/predictions/{prediction_id}/second-opinion",
        "/v1/predictions/{prediction_id}/corrections",
    }
    routes = [route for route in platform.app.routes if isinstance(route, GuardedRoute) and route.access.role]
    assert {route.path for route in routes if not route.access.reads} == by_texts


def wrong_key() -> str:
    return generate_key().text


async def test_an_address_guesses_few_keys_and_whoever_is_known_there_still_comes_in(
    platform: Platform,
) -> None:
    lookups = 0
    assert platform.key_records is not None
    find = platform.key_records.find

    async def counted(key_id: Any) -> Any:
        nonlocal lookups
        lookups += 1
        return await find(key_id)

    platform.key_records.find = counted  # type: ignore[method-assign]
    here, there = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
    async with platform.client() as known, platform.client(None) as stranger:
        assert (await known.get("/v2", headers=here)).status_code == 200
        answers = [await stranger.get("/v2", headers=here | {"X-API-Key": wrong_key()}) for _ in range(70)]
        form = {"grant_type": "client_credentials", "client_id": str(uuid4()), "client_secret": wrong_key()}
        token = await stranger.post("/v1/token", data=form, headers=here)
        platform.services.authenticator.forget(platform.keys[Role.CLIENT].id)
        still = await known.get("/v2", headers=here)
        elsewhere = await stranger.get("/v2", headers=there | {"X-API-Key": wrong_key()})
    statuses = [answer.status_code for answer in answers]
    assert (statuses[:60], set(statuses[61:])) == ([401] * 60, {429})
    assert lookups <= 65
    assert (token.status_code, still.status_code, elsewhere.status_code) == (429, 200, 401)


async def test_a_refused_caller_stands_in_the_log_with_its_address(platform: Platform) -> None:
    async with platform.client(None) as stranger, platform.client() as client:
        with capture_logs() as lines:
            await stranger.get("/v1/models", headers={"X-Forwarded-For": "198.51.100.7, 192.0.2.1"})
            await client.get("/v1/models", headers={"X-Forwarded-For": "192.0.2.9"})
            await client.get("/v2", headers={"X-Forwarded-For": "192.0.2.9"})
    told = [(line["status"], line.get("address")) for line in lines if line["event"] == "request"]
    assert told == [(401, "192.0.2.1"), (403, "192.0.2.9"), (200, None)]


@pytest.mark.parametrize(
    ("forwarded", "proxies", "address"),
    [
        ([], 0, "192.0.2.1"),
        ([b"198.51.100.7"], 0, "192.0.2.1"),
        ([b"198.51.100.7"], 1, "198.51.100.7"),
        ([b"6.6.6.6, 198.51.100.7", b"10.0.0.1"], 2, "198.51.100.7"),
        ([b"10.0.0.1"], 2, "192.0.2.1"),
        ([b"\xff"], 1, "\xff"),
    ],
)
def test_an_address_is_the_one_that_the_outermost_of_our_proxies_saw(
    forwarded: list[bytes], proxies: int, address: str
) -> None:
    headers = [(b"x-forwarded-for", each) for each in forwarded]
    assert client_address({"client": ("192.0.2.1", 1), "headers": headers}, proxies) == address
    assert client_address({"client": None, "headers": []}, proxies) == "unknown"


async def test_a_check_that_is_not_made_leaves_no_warning(platform: Platform) -> None:
    for _ in range(61):
        platform.services.refusals.count("127.0.0.1")
    async with platform.client(key=wrong_key()) as client:
        assert (await client.get("/v2")).status_code == 429
    await asyncio.sleep(0)
