"""The headers that keep browsers and caches from guessing, on every answer."""

from collections.abc import AsyncIterator

import pytest

from serving.core.caller import Role
from tests.support.app import Platform, fake_platform

pytestmark = pytest.mark.anyio


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/v1/predictions", Role.CLIENT),
        ("POST", "/v1/predict", Role.CLIENT),
        ("POST", "/v1/predict", None),
        ("GET", "/v2", Role.CLIENT),
        ("POST", "/v1/embeddings", Role.CLIENT),
        ("GET", "/metrics", Role.ENGINEER),
        ("GET", "/health/ready", None),
        ("GET", "/nowhere", None),
        ("POST", "/v1/token", None),
        ("GET", "/v1/keys", Role.ADMIN),
    ],
)
async def test_no_cache_keeps_an_answer_of_the_api(
    platform: Platform, method: str, path: str, role: Role | None
) -> None:
    async with platform.client(role) as client:
        answer = await client.request(method, path, json={"text": "good"} if method == "POST" else None)
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize("path", ["/docs", "/console"])
async def test_pages_run_their_own_scripts_only_and_are_never_framed(platform: Platform, path: str) -> None:
    async with platform.client(None) as client:
        page = await client.get(path, follow_redirects=True)
    policy = page.headers["content-security-policy"]
    scripts = next(each for each in policy.split("; ") if each.startswith("script-src"))
    assert ("default-src 'none'" in policy, "frame-ancestors 'none'" in policy) == (True, True)
    assert scripts == "script-src 'self'"
    assert page.headers.get_list("x-content-type-options") == ["nosniff"]


async def test_files_that_are_the_same_for_everybody_may_be_kept(platform: Platform) -> None:
    async with platform.client(None) as client:
        answers = [await client.get(path) for path in ("/docs/page.js", "/openapi.json")]
    assert [answer.headers.get("cache-control") for answer in answers] == [None, None]
