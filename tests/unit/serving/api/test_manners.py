"""What HTTP asks of every server: HEAD, preflights, challenges, and where a browser arrives."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from serving.api.security import GuardedRoute
from serving.core.caller import Role
from serving.errors import StoreUnavailable
from tests.support.app import Platform, fake_platform

pytestmark = pytest.mark.anyio

ORIGIN = "https://shop.example.org"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
}


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


async def test_head_answers_on_every_route_as_get_does_without_a_body(platform: Platform) -> None:
    gets = [
        route for route in platform.app.routes if isinstance(route, GuardedRoute) and "GET" in route.methods
    ]
    assert len(gets) > 30
    async with platform.client(Role.ADMIN) as client:
        for route in gets:
            path = route.path
            for name in ("prediction_id", "user_id", "experiment_id"):
                path = path.replace(f"{{{name}}}", str(uuid4()))
            path = path.replace("{version}", "1").replace("{file}", "icon.svg")
            path = path.replace("{name}", "swagger-ui.css" if path.startswith("/docs/") else "sentiment")
            get, head = await client.get(path), await client.head(path)
            assert (path, head.status_code, head.content) == (path, get.status_code, b"")
            assert head.headers["x-request-id"]
            if path != "/metrics":
                for name in ("content-type", "content-length", "etag", "location", "allow"):
                    assert head.headers.get(name) == get.headers.get(name), (path, name)


async def test_head_needs_the_credentials_of_get(platform: Platform) -> None:
    async with platform.client(None) as client:
        refused = await client.head("/v1/models")
    async with platform.client(Role.CLIENT) as client:
        forbidden = await client.head("/v1/models")
    assert (refused.status_code, refused.content) == (401, b"")
    assert forbidden.status_code == 403


async def test_head_is_refused_where_there_is_no_get_and_counted_as_head(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as client:
        wrong = await client.head("/v1/predict")
        await client.head("/health/live")
        mixed = await client.put("/v1/keys")
        page = (await client.get("/metrics")).text
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert mixed.headers["allow"] == "GET, HEAD, POST"
    assert 'valence_http_requests_total{method="HEAD",route="/health/live",status="200"} 1.0' in page


async def test_without_the_setting_no_other_origin_is_let_in(platform: Platform) -> None:
    async with platform.client() as client:
        preflight = await client.options("/v1/predict", headers=PREFLIGHT)
        answer = await client.get("/v1/predictions", headers={"Origin": ORIGIN})
    assert (preflight.status_code, preflight.headers["allow"]) == (405, "POST")
    for each in (preflight, answer):
        assert not [name for name in each.headers if name.startswith("access-control")]


async def test_a_page_of_an_allowed_origin_may_call_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_platform(cors_origins=(ORIGIN,)) as platform:
        async with platform.client() as client:
            preflight = await client.options("/v1/predict", headers=PREFLIGHT)
            good = await client.post("/v1/predict", json={"text": "good"}, headers={"Origin": ORIGIN})
            bad = await client.post("/v1/predict", json={}, headers={"Origin": ORIGIN})
            monkeypatch.setattr(platform.encoders, "fault", RuntimeError("a bug"))
            broken = await client.post("/v1/predict", json={"text": "bad"}, headers={"Origin": ORIGIN})
            other = await client.options(
                "/v1/predict", headers=PREFLIGHT | {"Origin": "https://evil.example.org"}
            )
            alien = await client.get("/v1/predictions", headers={"Origin": "https://evil.example.org"})
        async with platform.client(None) as client:
            unknown = await client.get("/v1/predictions", headers={"Origin": ORIGIN})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert (
        preflight.headers["access-control-allow-headers"].lower()
        == PREFLIGHT["Access-Control-Request-Headers"]
    )
    assert preflight.headers["x-request-id"]
    assert [each.status_code for each in (good, bad, broken, unknown)] == [201, 422, 500, 401]
    for each in (good, bad, broken, unknown):
        assert each.headers["access-control-allow-origin"] == ORIGIN
        assert "X-Request-Id" in each.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in each.headers
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in alien.headers


async def test_a_wrong_key_isn_t_called_a_token(platform: Platform) -> None:
    details = {}
    async with platform.client(None) as client:
        for credential in ("nonsense", "sk-abc", "vk_wrong", "a.b.c"):
            answer = await client.get("/v1/me", headers={"Authorization": f"Bearer {credential}"})
            if answer.status_code == 404:
                answer = await client.get("/v1/predictions", headers={"X-API-Key": credential})
            details[credential] = answer.json()["detail"]
    assert "neither an API key (they begin with vk_) nor a token" in details["nonsense"]
    assert details["sk-abc"] == details["nonsense"]
    assert details["vk_wrong"].startswith("the API key is wrong")
    assert details["a.b.c"].startswith("the token is")


@pytest.mark.parametrize("in_header", [True, False])
async def test_a_token_s_refusal_names_the_scheme_that_its_route_understands(
    platform: Platform, in_header: bool
) -> None:
    form = {"grant_type": "client_credentials"}
    async with platform.client(None) as client:
        if in_header:
            answer = await client.post("/v1/token", data=form, auth=("me", "vk_wrong"))
        else:
            answer = await client.post(
                "/v1/token", data=form | {"client_id": "me", "client_secret": "vk_wrong"}
            )
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert answer.headers["www-authenticate"].startswith("Basic ")


async def test_a_token_is_got_from_where_the_metadata_says(platform: Platform) -> None:
    key = platform.keys[Role.ENGINEER]
    async with platform.client(None) as client:
        metadata = (await client.get("/.well-known/oauth-authorization-server")).json()
        issued = await client.post(
            metadata["token_endpoint"],
            data={"grant_type": metadata["grant_types_supported"][0]},
            auth=(str(key.id), key.text),
        )
    assert (metadata["issuer"], issued.status_code) == ("http://valence", 200)
    assert issued.json()["scope"] in metadata["scopes_supported"]
    assert metadata["token_endpoint_auth_methods_supported"] == ["client_secret_basic", "client_secret_post"]
    assert metadata["response_types_supported"] == []


@pytest.mark.parametrize("keys", [["a", "b"], ["a", "a"], ["a", ""], [""]])
async def test_two_idempotency_keys_are_refused(platform: Platform, keys: list[str]) -> None:
    async with platform.client() as client:
        headers = [*client.headers.multi_items(), *(("Idempotency-Key", key) for key in keys)]
        for path, body in (("/v1/predict", {"text": "good"}), ("/v1/predict/batch", {"texts": ["good"]})):
            answer = await client.post(path, json=body, headers=headers)
            assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (
                422,
                ["header", "Idempotency-Key"],
            )
    assert platform.store is not None
    assert platform.store.predictions == {}


@pytest.mark.parametrize("role", [Role.CLIENT, Role.ENGINEER])
async def test_only_engineers_see_why_a_part_of_the_platform_fails(platform: Platform, role: Role) -> None:
    async with platform.client(role) as client:
        failed = await client.post("/v1/predict", json={"text": "good", "version": "4"})
        inference = await client.get("/v2/models/sentiment/versions/4/ready")
        platform.encoders.fault = StoreUnavailable(
            "the database is away", reason="no socket /home/me/.s.PGSQL"
        )
        unreachable = await client.post("/v1/predict", json={"text": "good"})
    assert [each.status_code for each in (failed, inference, unreachable)] == [503, 503, 503]
    for answer, reason in (
        (failed, "digest"), (inference, "digest"), (unreachable, "/home/me"),
    ):  # fmt: skip
        assert (reason in answer.text) is (role is Role.ENGINEER)
    assert "version 4 of 'sentiment' is failed" in failed.json()["detail"]


async def test_large_lists_are_compressed_for_clients_that_read_gzip(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as client:
        await client.post("/v1/predict/batch", json={"texts": [f"good {n}" for n in range(200)]})
        answers = {
            (path, encoding): await client.get(path, headers={"Accept-Encoding": encoding})
            for path in ("/v1/predictions?limit=200", "/v1/predictions?limit=1")
            for encoding in ("gzip", "identity", "gzip;q=0, identity", "br;q=1, GZIP; q=0.000")
        }
        head = await client.head("/v1/predictions?limit=200", headers={"Accept-Encoding": "gzip"})
    encodings = {asked: answer.headers.get("content-encoding") for asked, answer in answers.items()}
    assert [asked for asked, encoding in encodings.items() if encoding] == [
        ("/v1/predictions?limit=200", "gzip")
    ]
    whole, plain = (answers["/v1/predictions?limit=200", encoding] for encoding in ("gzip", "identity"))
    assert whole.json() == plain.json()
    assert int(whole.headers["content-length"]) * 4 < int(plain.headers["content-length"])
    assert whole.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert (head.headers["content-length"], head.content) == (whole.headers["content-length"], b"")


async def test_a_browser_arrives_at_the_console(platform: Platform) -> None:
    async with platform.client(None) as client:
        home = await client.get("/", follow_redirects=True)
        icon = await client.get("/favicon.ico", follow_redirects=True)
    assert (home.status_code, home.url.path) == (200, "/console")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")
    assert home.history[0].headers["location"] == "console"
