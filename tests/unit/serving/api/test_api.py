"""The API over fakes: shapes, statuses, roles, headers."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import APIRouter

from db.models.evaluations import NewEvaluation
from serving.accounts.tokens import TokenSigner
from serving.api.security import GuardedRoute
from serving.core.caller import Role
from serving.errors import Overloaded
from tests.support.app import Platform, add_key, fake_platform
from tests.support.postgres import KEY, SPACE
from tests.support.reports import report

pytestmark = pytest.mark.anyio

PUBLIC = {
    "/health/live",
    "/health/ready",
    "/v2/health/live",
    "/v2/health/ready",
    "/docs",
    "/openapi.json",
    "/v1/token",
    "/.well-known/oauth-authorization-server",
    "/",
    "/favicon.ico",
    "/console",
    "/console/",
    "/console/{file}",
    "/docs/page.js",
    "/docs/{name}",
}


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


async def test_a_prediction_has_the_contract_s_shape(platform: Platform) -> None:
    async with platform.client() as client:
        answer = await client.post("/v1/predict", json={"text": "  a great phone "})
    assert answer.status_code == 201
    body = answer.json()
    assert set(body) == {
        "id", "text_id", "sentiment", "confidence", "scores", "model", "model_version", "arm",
        "experiment_id", "user_id", "predicted_at", "language", "supported",
    }  # fmt: skip
    assert (body["sentiment"], body["confidence"], body["model_version"]) == ("positive", 0.8, "2")
    assert body["scores"] == {"negative": 0.1, "neutral": 0.1, "positive": 0.8}
    assert platform.store is not None
    assert [text.content for text in platform.store.texts.values()] == ["a great phone"]
    stages = [part.strip().split(";dur=") for part in answer.headers["server-timing"].split(",")]
    assert [name for name, _ in stages] == ["queue", "infer", "store"]
    assert all(float(duration) >= 0 for _, duration in stages)


async def test_a_batch_answers_in_order_with_embeddings_and_says_what_was_cut(platform: Platform) -> None:
    texts = ["good", "bad", "x" * 3000]
    async with platform.client() as client:
        answer = await client.post("/v1/predict/batch", json={"texts": texts, "return_embedding": True})
    predictions = answer.json()["predictions"]
    assert [each["sentiment"] for each in predictions] == ["positive", "negative", "neutral"]
    assert [each.get("truncated") for each in predictions] == [None, None, True]
    assert {len(each["embedding"]) for each in predictions} == {384}


async def test_what_the_version_does_not_know_is_said_and_stored(platform: Platform) -> None:
    texts = ["so good", "das ist gut", "👎👎👎"]
    async with platform.client() as client:
        answer = await client.post("/v1/predict/batch", json={"texts": texts})
        predictions = answer.json()["predictions"]
        stored = [(await client.get(f"/v1/predictions/{each['id']}")).json() for each in predictions]
    for each in (predictions, stored):
        assert [prediction["language"] for prediction in each] == ["en", "de", "en"]
        assert [prediction["supported"] for prediction in each] == [True, False, False]
        assert [prediction.get("mostly_unknown") for prediction in each] == [None, None, True]


async def test_a_prediction_from_before_there_were_signs_has_none(platform: Platform) -> None:
    async with platform.client() as client:
        made = (await client.post("/v1/predict", json={"text": "good"})).json()
        assert platform.store is not None
        row = platform.store.predictions[UUID(made["id"])]
        old: Any = {"language": None, "supported": None, "mostly_unknown": None}
        platform.store.predictions[row.id] = replace(row, **old)
        stored = (await client.get(f"/v1/predictions/{made['id']}")).json()
    assert {"language", "supported", "mostly_unknown"}.isdisjoint(stored)


async def test_a_named_version_answers_itself(platform: Platform) -> None:
    async with platform.client() as client:
        named = await client.post("/v1/predict", json={"text": "good", "version": "1"})
        unknown = await client.post("/v1/predict", json={"text": "good", "version": "99"})
        absent = await client.post("/v1/predict", json={"text": "good", "model": "nothing"})
        starting = await client.post("/v1/predict", json={"text": "good", "version": "3"})
    assert (named.json()["model_version"], named.json()["arm"]) == ("1", "named")
    assert (unknown.status_code, absent.status_code, starting.status_code) == (404, 404, 503)
    assert int(starting.headers["retry-after"]) >= 1


async def test_overload_is_429_with_retry_after(platform: Platform) -> None:
    platform.encoders.fault = Overloaded("full", retry_after=2.3)
    async with platform.client() as client:
        answer = await client.post("/v1/predict", json={"text": "good"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_without_room_a_prediction_is_refused_before_its_body_is_read(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise Overloaded("full", retry_after=4)

    monkeypatch.setattr(platform.services.predictions, "require_room", full)
    async with platform.client() as client:
        unread = await client.post("/v1/predict", content=b"not JSON at all")
        repeated = await client.post(
            "/v1/predict", json={"text": "good"}, headers={"Idempotency-Key": "asked-before"}
        )
        elsewhere = await client.get("/v1/predictions")
    assert (unread.status_code, unread.headers["retry-after"]) == (429, "4")
    assert (repeated.status_code, elsewhere.status_code) == (201, 200)


async def test_what_can_t_be_stored_is_503_and_never_2xx(platform: Platform) -> None:
    async with platform.client() as client:
        assert (await client.get("/v1/predictions")).status_code == 200
        assert platform.store is not None
        platform.store.down = True
        answer = await client.post("/v1/predict", json={"text": "good"})
    assert (answer.status_code, answer.json()["title"]) == (503, "Database unavailable")
    assert "retry-after" in answer.headers


async def test_a_clock_beyond_the_partitions_is_503_until_there_are_some(platform: Platform) -> None:
    past = datetime.now(UTC) - timedelta(days=60)
    platform.ids.set_bounds(past, past + timedelta(days=30))
    async with platform.client() as client:
        answer = await client.post("/v1/predict", json={"text": "good"})
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert "clock" not in answer.text
        platform.ids.set_bounds(past, past + timedelta(days=90))
        assert (await client.post("/v1/predict", json={"text": "good"})).status_code == 201


async def test_an_unforeseen_error_is_500_without_details(platform: Platform) -> None:
    platform.encoders.fault = RuntimeError("the secret of the house")
    async with platform.client() as client:
        answer = await client.post("/v1/predict", json={"text": "good"}, headers={"X-Request-Id": "mine-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-1")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("given", "kept"), [("abc.DEF_1-2", True), ("a b", False), ("", False), ("x" * 129, False)]
)
async def test_a_valid_request_id_comes_back_and_another_is_replaced(
    platform: Platform, given: str, kept: bool
) -> None:
    async with platform.client() as client:
        answer = await client.get("/health/live", headers={"X-Request-Id": given})
    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.headers["x-request-id"]


async def test_every_route_declares_who_may_use_it(platform: Platform) -> None:
    assert {type(route) for route in platform.app.routes} == {GuardedRoute}
    routes = [route for route in platform.app.routes if isinstance(route, GuardedRoute)]
    assert {route.path for route in routes if route.access.role is None} == PUBLIC
    async with platform.client(None) as client:
        for route in routes:
            if route.access.role is not None:
                path = route.path.replace("{name}", "sentiment").replace("{version}", "1")
                path = path.replace("{prediction_id}", str(uuid4())).replace("{user_id}", str(uuid4()))
                for method in route.methods or ():
                    answer = await client.request(method, path.replace("{key_id}", str(uuid4())))
                    assert (path, answer.status_code) == (path, 401)
                    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_route_without_a_declaration_can_t_be_made() -> None:
    async def careless() -> None: ...

    with pytest.raises(TypeError, match="access"):
        APIRouter(route_class=GuardedRoute).get("/careless")(careless)


@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        (Role.CLIENT, "GET", "/v1/models", 403),
        (Role.ENGINEER, "GET", "/v1/models", 200),
        (Role.CLIENT, "GET", "/metrics", 403),
        (Role.ENGINEER, "GET", "/metrics", 200),
        (Role.ENGINEER, "GET", "/v1/keys", 403),
        (Role.ENGINEER, "POST", "/v1/users", 403),
        (Role.ENGINEER, "DELETE", "/v1/users/00000000-0000-4000-8000-000000000000/data", 403),
        (Role.ENGINEER, "DELETE", "/v1/texts/00000000-0000-4000-8000-000000000000", 403),
        (Role.ADMIN, "GET", "/v1/keys", 200),
        (Role.ADMIN, "GET", "/v1/predictions", 200),
    ],
)
async def test_a_role_opens_its_routes_and_those_below(
    platform: Platform, role: Role, method: str, path: str, status: int
) -> None:
    async with platform.client(role) as client:
        assert (await client.request(method, path)).status_code == status


async def test_credentials_are_checked_before_the_body_is_read(platform: Platform) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b"x"

    async with platform.client(None) as client:
        answer = await client.post(
            "/v1/predict", content=body(), headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, read) == (401, [])


async def test_both_headers_carry_a_key(platform: Platform) -> None:
    async with platform.client(None) as client:
        answer = await client.get("/v1/predictions", headers={"X-API-Key": platform.keys[Role.CLIENT].text})
    assert answer.status_code == 200


async def test_unknown_paths_and_methods_are_problems(platform: Platform) -> None:
    async with platform.client() as client:
        absent, slash = await client.get("/v1/nothing"), await client.post("/v1/predict/")
        wrong = await client.put("/v1/keys")
        inference = await client.get("/v2/nothing")
    assert [answer.status_code for answer in (absent, slash, wrong, inference)] == [404, 404, 405, 404]
    assert wrong.headers["allow"] == "GET, HEAD, POST"
    assert absent.json() | {"detail": ""} == {
        "type": "urn:valence:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": "",
        "instance": "/v1/nothing",
    }
    assert set(inference.json()) == {"error"}


async def test_validation_says_where_and_never_repeats_the_input(platform: Platform) -> None:
    async with platform.client() as client:
        answer = await client.post("/v1/predict", json={"text": "", "user_id": "my-secret", "more": 1})
    body = answer.json()
    assert answer.status_code == 422
    assert [problem["loc"] for problem in body["errors"]] == [
        ["body", "user_id"], ["body", "text"], ["body", "more"],
    ]  # fmt: skip
    assert "my-secret" not in answer.text


async def test_a_client_that_leaves_is_dropped_before_its_text_is_computed(platform: Platform) -> None:
    gone = asyncio.Event()
    sent: list[object] = []
    body = json.dumps({"text": "good"}).encode()
    messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, object]:
        if len(messages) == 1:
            await gone.wait()
        return messages.pop(0)

    async def send(message: object) -> None:
        sent.append(message)

    batcher = platform.services.predictions._dispatcher._batcher("e" * 64, bulk=False)
    batcher._free = 0
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "raw_path": b"/v1/predict",
        "query_string": b"",
        "headers": [
            (b"authorization", f"Bearer {platform.keys[Role.CLIENT].text}".encode()),
            (b"content-type", b"application/json"),
        ],
    }
    served = asyncio.create_task(platform.app(scope, receive, send))
    while not batcher.waiting:  # noqa: ASYNC110 - the batcher has no event for it
        await asyncio.sleep(0)
    gone.set()
    await served
    batcher._free = 2
    async with platform.client() as client:
        assert (await client.post("/v1/predict", json={"text": "bad"})).status_code == 201
    assert sent == []
    assert platform.encoders.batches == [1]


async def test_the_same_idempotency_key_replays_and_another_body_conflicts(platform: Platform) -> None:
    headers = {"Idempotency-Key": "once"}
    async with platform.client() as client:
        first = await client.post("/v1/predict", json={"text": "good"}, headers=headers)
        again = await client.post("/v1/predict", json={"text": "good"}, headers=headers)
        other = await client.post("/v1/predict", json={"text": "bad"}, headers=headers)
        twins = await asyncio.gather(
            *(
                client.post("/v1/predict", json={"text": "great"}, headers={"Idempotency-Key": "b"})
                for _ in range(5)
            )
        )
        wrong = await client.post("/v1/predict", json={"text": "good"}, headers={"Idempotency-Key": "a b"})
    assert first.content == again.content
    assert again.headers["idempotency-replayed"] == "true"
    assert (other.status_code, wrong.status_code) == (409, 422)
    assert len({twin.content for twin in twins}) == 1
    assert platform.store is not None
    assert len(platform.store.predictions) == 2


async def test_a_rate_limit_counts_texts(platform: Platform) -> None:
    key = await add_key(platform.key_records, Role.CLIENT, rate=10)
    async with platform.client(key=key.text) as client:
        batch = await client.post("/v1/predict/batch", json={"texts": ["good"] * 10})
        refused = await client.post("/v1/predict", json={"text": "good"})
        platform.clock.ahead += 1
        later = await client.post("/v1/predict", json={"text": "good"})
    assert [answer.status_code for answer in (batch, refused, later)] == [201, 429, 201]
    assert refused.headers["retry-after"] == "1"


async def test_tokens_that_were_not_given_here_are_refused(platform: Platform) -> None:
    key = platform.keys[Role.ADMIN]
    now = platform.clock.now
    forged = {
        "another key's": TokenSigner([b"x" * 32], audience="tests", now=now),
        "another installation's": TokenSigner([KEY], audience="elsewhere", now=now),
        "an overlong one": TokenSigner([KEY], audience="tests", seconds=1e9, now=now),
        "one of the future": TokenSigner([KEY], audience="tests", now=lambda: now() + 3600),
    }
    tokens = {name: signer.sign(key.id, Role.ADMIN).text for name, signer in forged.items()}
    good = TokenSigner([KEY], audience="tests", now=now).sign(key.id, Role.ADMIN).text
    header, claims, signature = good.split(".")
    nothing = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    tokens |= {"an unsigned one": f"{nothing}.{claims}.", "a cut one": f"{header}.{claims}.{signature[:-4]}"}
    async with platform.client(None) as client:
        for name, token in tokens.items():
            for path in ("/v1/keys", "/v2"):
                answer = await client.get(path, headers={"Authorization": f"Bearer {token}"})
                assert answer.status_code == 401, (name, path)
                assert "WWW-Authenticate" in answer.headers, name
        taken = await client.get("/v1/keys", headers={"Authorization": f"Bearer {good}"})
    assert taken.status_code == 200


async def test_a_token_is_issued_by_rfc_6749(platform: Platform) -> None:
    key = platform.keys[Role.ENGINEER]
    form = {"grant_type": "client_credentials", "client_id": str(key.id), "client_secret": key.text}
    async with platform.client(None) as client:
        issued = await client.post("/v1/token", data=form)
        token = issued.json()["access_token"]
        used = await client.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
        basic = base64.b64encode(f"{key.id}:{key.text}".encode()).decode()
        by_header = await client.post(
            "/v1/token",
            data={"grant_type": "client_credentials"},
            headers={"Authorization": f"Basic {basic}"},
        )
        platform.clock.ahead += 901
        expired = await client.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
    assert (issued.status_code, issued.headers["cache-control"]) == (200, "no-store")
    assert issued.json() | {"access_token": ""} == {
        "access_token": "",
        "token_type": "Bearer",
        "expires_in": 900,
        "scope": "engineer",
    }
    assert (used.status_code, by_header.status_code, expired.status_code) == (200, 200, 401)
    assert 'error="invalid_token"' in expired.headers["www-authenticate"]


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": None}, 400, "invalid_request"),
        ({"client_id": None}, 400, "invalid_request"),
        ({"client_secret": "vk_wrong"}, 401, "invalid_client"),
        ({"client_id": str(uuid4())}, 401, "invalid_client"),
        ({"scope": "admin"}, 400, "invalid_scope"),
        ({"client_id": ["a", "b"]}, 400, "invalid_request"),
    ],
)
async def test_a_token_is_refused_by_rfc_6749(
    platform: Platform, change: dict[str, object], status: int, error: str
) -> None:
    key = platform.keys[Role.CLIENT]
    form = {"grant_type": "client_credentials", "client_id": str(key.id), "client_secret": key.text} | change
    async with platform.client(None) as client:
        answer = await client.post("/v1/token", data={name: value for name, value in form.items() if value})
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert key.text not in answer.text


async def test_models_show_versions_and_why_one_failed(platform: Platform) -> None:
    async with platform.client(Role.ENGINEER) as client:
        names = (await client.get("/v1/models")).json()
        model = (await client.get("/v1/models/sentiment")).json()
        absent = await client.get("/v1/models/nothing")
    assert names["items"] == [{"name": "sentiment", "languages": ["en"]}]
    assert [version["version"] for version in model["versions"]] == ["4", "3", "2", "1"]
    assert model["versions"][0]["reason"] == "the head's digest is wrong"
    assert model["versions"][2] == {
        "version": "2",
        "aliases": ["champion"],
        "name": "the head",
        "description": "Made for tests.",
        "languages": ["en"],
        "kind": "head",
        "encoder": "e" * 64,
        "metrics": {"accuracy": 0.75},
        "state": "ready",
    }
    assert absent.status_code == 404


async def test_readiness_names_what_is_missing(platform: Platform) -> None:
    async with platform.client(None) as client:
        ready = await client.get("/health/ready")
        platform.lacks.append("no champion")
        waiting, inference = await client.get("/health/ready"), await client.get("/v2/health/ready")
        live = await client.get("/health/live")
    assert (ready.status_code, live.status_code) == (200, 200)
    assert (waiting.status_code, waiting.json()["detail"]) == (503, "not ready: no champion")
    assert inference.json() == {"error": "not ready: no champion"}


async def test_metrics_count_by_route_template(platform: Platform) -> None:
    async with platform.client(Role.ENGINEER) as client:
        await client.post("/v1/predict", json={"text": "good"})
        await client.get(f"/v1/predictions/{uuid4()}")
        await client.get("/no/such/path")
        page = (await client.get("/metrics")).text
    assert 'valence_http_requests_total{method="POST",route="/v1/predict",status="201"} 1.0' in page
    assert 'route="/v1/predictions/{prediction_id}",status="404"' in page
    assert 'route="none",status="404"' in page
    assert (
        'valence_predictions_total{arm="champion",model="sentiment",sentiment="positive",version="2"} 1.0'
        in page
    )
    assert 'valence_batch_size_count{door="store"} 1.0' in page


async def test_metrics_open_by_setting() -> None:
    async with fake_platform(metrics_open=True) as platform, platform.client(None) as client:
        assert (await client.get("/metrics")).status_code == 200


async def test_embeddings_come_as_numbers_or_base64(platform: Platform) -> None:
    async with platform.client() as client:
        request = {"model": "test-space", "input": ["good day", "bad day"]}
        numbers = (await client.post("/v1/embeddings", json=request)).json()
        packed = (await client.post("/v1/embeddings", json=request | {"encoding_format": "base64"})).json()
        unknown = await client.post("/v1/embeddings", json=request | {"model": "gpt"})
        wrong = await client.post("/v1/embeddings", json={"model": "test-space", "input": [[1, 2]]})
    first = struct.unpack("<384f", base64.b64decode(packed["data"][0]["embedding"]))
    assert numbers["data"][0]["embedding"] == pytest.approx(list(first), abs=1e-6)
    assert numbers["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (unknown.status_code, wrong.status_code) == (404, 400)
    assert set(unknown.json()["error"]) == {"message", "type", "param", "code"}
    assert wrong.json()["error"]["param"] == "input"


async def test_open_inference_answers_and_stores(platform: Platform) -> None:
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "bad"]}
    async with platform.client() as client:
        answer = await client.post("/v2/models/sentiment/infer", json={"id": "42", "inputs": [tensor]})
        wanted = await client.post(
            "/v2/models/sentiment/versions/1/infer",
            json={"inputs": [tensor], "outputs": [{"name": "embedding"}]},
        )
        torn = await client.post("/v2/models/sentiment/infer", json={"inputs": [tensor | {"shape": [3]}]})
        metadata = await client.get("/v2/models/sentiment/versions/1")
        ready = await client.get("/v2/models/sentiment/ready")
        starting = await client.get("/v2/models/sentiment/versions/3/ready")
        absent = await client.get("/v2/models/sentiment/versions/99")
    body = answer.json()
    outputs = {output["name"]: output for output in body["outputs"]}
    assert (answer.status_code, body["id"], body["model_name"], body["model_version"]) == (
        200,
        "42",
        "sentiment",
        "2",
    )
    assert outputs["label"]["data"] == ["positive", "negative"]
    assert (outputs["probabilities"]["shape"], len(outputs["probabilities"]["data"])) == ([2, 3], 6)
    assert platform.store is not None
    assert {str(key) for key in platform.store.predictions} >= set(outputs["prediction_id"]["data"])
    (embedding,) = wanted.json()["outputs"]
    assert (embedding["shape"], len(embedding["data"]), wanted.json()["model_version"]) == (
        [2, 384],
        768,
        "1",
    )
    assert metadata.json()["versions"] == ["1"]
    assert ready.json() == {"name": "sentiment", "ready": True}
    assert [each.status_code for each in (torn, starting, absent)] == [422, 503, 404]
    assert "error" in torn.json()


async def test_the_document_names_every_error_a_route_can_answer(platform: Platform) -> None:
    async with platform.client(None) as client:
        document = (await client.get("/openapi.json")).json()
        page = await client.get("/docs")
    predict = document["paths"]["/v1/predict"]["post"]
    assert set(predict["responses"]) == {
        "201", "401", "404", "408", "409", "413", "415", "422", "429", "500", "503",
    }  # fmt: skip
    assert set(predict["responses"]["422"]["content"]) == {"application/problem+json"}
    assert predict["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/PredictRequest"
    }
    assert page.status_code == 200


async def evaluated(platform: Platform, version: str, accuracy: float) -> None:
    """Return a stored report of this version."""
    result = report(version, accuracy)
    wanted = NewEvaluation(
        bundle_digest=result.bundle, data_digest=result.data, model="sentiment", version=version
    )
    outcome = await platform.evaluations.request(wanted)
    await platform.evaluations.finish(outcome.id, result.dump())


async def test_a_version_is_evaluated_promoted_and_rolled_back(platform: Platform) -> None:
    versions = "/v1/models/sentiment/versions"
    async with platform.client(Role.ENGINEER) as client:
        missing = await client.post(f"{versions}/3/promote")
        response = await client.post(f"{versions}/3/evaluate")
        await platform.lifecycle.evaluations.evaluations.fail(response.json()["id"], "a test")
        await evaluated(platform, "2", 0.75)
        await evaluated(platform, "3", 0.78)
        shown = await client.get(f"{versions}/3")
        promoted = await client.post(f"{versions}/3/promote", json={"reason": "better"})
        again = await client.post(f"{versions}/3/promote", json={})
        undone = await client.post("/v1/models/sentiment/rollback")
        page = await client.get("/v1/models/sentiment/history", params={"limit": 2})
        rest = await client.get("/v1/models/sentiment/history", params={"cursor": page.json()["next_cursor"]})
    assert missing.status_code == 409
    assert missing.json()["title"] == "Promotion refused"
    assert missing.json()["detail"].startswith("evaluation missing")
    assert set(missing.json()["report"]["missing"]) == {"2", "3"}
    assert (response.status_code, response.json()["state"]) == (202, "running")
    assert shown.json()["gates"]["passed"]
    assert [each["state"] for each in shown.json()["evaluations"]] == ["done", "failed"]
    assert (promoted.status_code, promoted.json()["previous"], promoted.json()["changed"]) == (200, "2", True)
    assert promoted.json()["report"]["passed"]
    assert (again.status_code, again.json()["changed"]) == (200, False)
    assert (undone.status_code, undone.json()["version"], undone.json()["report"]) == (200, "2", None)
    assert [(item["version"], item["act"]) for item in page.json()["items"]] == [
        ("2", "rollback"),
        ("3", "promote"),
    ]
    first, second = page.json()["items"]
    assert (first["to"], second["to"]) == (None, first["from"])
    assert (second["by"], second["reason"]) == (str(platform.keys[Role.ENGINEER].id), "better")
    assert [(item["version"], item["act"]) for item in rest.json()["items"]] == [("2", "bootstrap")]


async def test_a_space_is_built_switched_to_and_removed(platform: Platform) -> None:
    platform.registry.spaces |= {"next": 384, "wide": 768}
    platform.spaces.rows[SPACE] = replace(platform.spaces.rows[SPACE], vectors=100)
    async with platform.client(Role.ENGINEER) as client:
        unknown = await client.post("/v1/spaces", json={"name": "unknown"})
        wide = await client.post("/v1/spaces", json={"name": "wide"})
        begun = await client.post("/v1/spaces", json={"name": "next"})
        early = await client.post("/v1/spaces/next/switch")
        platform.spaces.rows["next"] = replace(platform.spaces.rows["next"], vectors=40, pace=0.5)
        listed = (await client.get("/v1/spaces")).json()["items"]
        platform.spaces.rows["next"] = replace(platform.spaces.rows["next"], vectors=100)
        live = await client.delete(f"/v1/spaces/{SPACE}")
        switched = await client.post("/v1/spaces/next/switch")
        followed = await client.delete(f"/v1/spaces/{SPACE}")
        platform.spaces.rows["next"] = replace(
            platform.spaces.rows["next"], live_at=datetime(2026, 1, 2, tzinfo=UTC)
        )
        removed = await client.delete(f"/v1/spaces/{SPACE}")
        gone = await client.delete("/v1/spaces/unknown")
    async with platform.client(Role.CLIENT) as client:
        assert (await client.get("/v1/spaces")).status_code == 403
    assert (unknown.status_code, "valence spaces register" in unknown.json()["detail"]) == (404, True)
    assert wide.status_code == 409
    assert "768 dimensions, and the index holds vectors of 384" in wide.json()["detail"]
    assert (begun.status_code, begun.json()["state"], begun.json()["share"]) == (202, "building", 0)
    assert (early.status_code, early.json()["detail"][:9]) == (409, "100 texts")
    assert [(each["name"], each["share"], each["seconds_left"], each["answers"]) for each in listed] == [
        (SPACE, 1, None, True),
        ("next", 0.4, 120, False),
    ]
    assert live.status_code == 409
    # The platform switches once the encoder of the space runs.
    assert (switched.status_code, switched.json()["state"], switched.json()["answers"]) == (
        200,
        "live",
        False,
    )
    assert followed.status_code == 409
    assert (removed.status_code, removed.json()["state"]) == (202, "leaving")
    assert gone.status_code == 404


async def test_a_failed_gate_answers_409_with_the_report(platform: Platform) -> None:
    await evaluated(platform, "2", 0.75)
    await evaluated(platform, "1", 0.6)
    path = "/v1/models/sentiment/versions/1/promote"
    async with platform.client(Role.ENGINEER) as client:
        failed = await client.post(path)
        unreasoned = await client.post(path, json={"force": True})
        forced = await client.post(path, json={"force": True, "reason": "an incident"})
    assert failed.status_code == 409
    assert failed.headers["content-type"] == "application/problem+json"
    assert [check["passed"] for check in failed.json()["report"]["checks"]].count(False) == 1
    assert (unreasoned.status_code, unreasoned.json()["errors"][0]["loc"]) == (422, ["body", "reason"])
    assert (forced.status_code, forced.json()["forced"], forced.json()["gated"]) == (200, True, False)


BAD_CHANGES: dict[str, tuple[str, str, Any, int]] = {
    "broken version": ("POST", "versions/4/promote", {"force": True, "reason": "x"}, 409),
    "unknown version": ("POST", "versions/9/promote", {}, 404),
    "evaluate an unknown version": ("POST", "versions/9/evaluate", None, 404),
    "show an unknown version": ("GET", "versions/9", None, 404),
    "unknown field": ("POST", "versions/3/promote", {"why": "x"}, 422),
    "a string for a flag": ("POST", "versions/3/promote", {"force": "yes"}, 422),
    "nothing before": ("POST", "rollback", None, 409),
    "no page gave that": ("GET", "history?cursor=x", None, 422),
    "no champion yet": ("GET", "champion?at=2020-01-01T00:00:00Z", None, 404),
    "a time without its offset": ("GET", "champion?at=2026-01-01T00:00:00", None, 422),
}


@pytest.mark.parametrize("case", BAD_CHANGES)
async def test_what_cant_be_changed_is_a_problem_that_says_why(platform: Platform, case: str) -> None:
    method, path, content, status = BAD_CHANGES[case]
    async with platform.client(Role.ENGINEER) as client:
        answer = await client.request(method, f"/v1/models/sentiment/{path}", json=content)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert platform.registry.champion == "2"


async def test_clients_may_not_touch_versions(platform: Platform) -> None:
    async with platform.client(Role.CLIENT) as client:
        for method, path in (
            ("POST", "versions/3/promote"),
            ("POST", "versions/3/evaluate"),
            ("GET", "versions/3"),
            ("POST", "rollback"),
            ("GET", "history"),
            ("GET", "champion"),
        ):
            answer = await client.request(method, f"/v1/models/sentiment/{path}")
            assert answer.status_code == 403


async def test_the_document_says_that_these_bodies_may_be_left_out(platform: Platform) -> None:
    async with platform.client(None) as client:
        document = (await client.get("/openapi.json")).json()
    promote = document["paths"]["/v1/models/{name}/versions/{version}/promote"]["post"]
    assert promote["requestBody"]["required"] is False
    assert {"200", "401", "403", "404", "409", "422"} <= set(promote["responses"])
    assert "report" in document["components"]["schemas"]["ProblemDetails"]["properties"]


async def test_the_champion_of_any_moment_is_the_item_of_the_history(platform: Platform) -> None:
    path = "/v1/models/sentiment"
    async with platform.client(Role.ENGINEER) as client:
        for version in ("3", "1"):
            await client.post(f"{path}/versions/{version}/promote", json={"force": True, "reason": "a test"})
        items = (await client.get(f"{path}/history")).json()["items"]
        now = (await client.get(f"{path}/champion")).json()
        shown = [(await client.get(f"{path}/champion", params={"at": item["from"]})).json() for item in items]
        other = await client.get("/v1/models/other/champion")
    assert [item["version"] for item in items[:2]] == ["1", "3"]
    assert now == items[0]
    assert shown == items
    assert other.status_code == 404


async def test_users_are_listed_for_admins_by_name_and_in_pages(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as admin, platform.client(Role.ENGINEER) as engineer:
        for name in ("Ada", "bob", "adam"):
            await admin.post("/v1/users", json={"username": name, "email": f"{name}@example.org"})
        first = (await admin.get("/v1/users", params={"limit": 2})).json()
        rest = (await admin.get("/v1/users", params={"cursor": first["next_cursor"]})).json()
        named = (await admin.get("/v1/users", params={"name": "aD"})).json()
        one = (await admin.get(f"/v1/users/{named['items'][0]['id']}")).json()
        refused = [
            (await admin.get("/v1/users", params=parameters)).status_code
            for parameters in ({"cursor": "x"}, {"limit": 0}, {"name": "a\0"}, {"email": "x"})
        ]
        forbidden = await engineer.get("/v1/users")
    assert [user["username"] for user in first["items"]] == ["adam", "bob"]
    assert ([user["username"] for user in rest["items"]], rest["next_cursor"]) == (["Ada"], None)
    assert [user["username"] for user in named["items"]] == ["adam", "Ada"]
    assert named["items"][0] == one
    assert (refused, forbidden.status_code) == ([422] * 4, 403)


async def test_the_audit_log_is_read_by_admins_filtered_and_in_pages(platform: Platform) -> None:
    actor = uuid4()
    assert platform.store is not None
    platform.store.audit.clear()
    platform.store.append(actor, "user.create", "u1", {})
    platform.store.append(None, "champion.bootstrap", "sentiment", {"to": "2"})
    platform.store.append(actor, "key.create", "k1", {"role": "client"})
    async with platform.client(Role.ADMIN) as admin, platform.client(Role.ENGINEER) as engineer:
        first = (await admin.get("/v1/audit", params={"limit": 2})).json()
        rest = (await admin.get("/v1/audit", params={"cursor": first["next_cursor"]})).json()
        for filters, actions in (
            ({"actor": str(actor)}, ["key.create", "user.create"]),
            ({"action": "key.create"}, ["key.create"]),
            ({"subject": "sentiment"}, ["champion.bootstrap"]),
            (
                {"since": rest["items"][0]["at"], "until": first["items"][0]["at"]},
                ["champion.bootstrap", "user.create"],
            ),
        ):
            page = (await admin.get("/v1/audit", params=filters)).json()
            assert [item["action"] for item in page["items"]] == actions, filters
        assert (await admin.get("/v1/audit", params={"cursor": "x"})).status_code == 422
        assert (await admin.get("/v1/audit", params={"since": "last week"})).status_code == 422
        assert (await engineer.get("/v1/audit")).status_code == 403
    assert [item["action"] for item in first["items"]] == ["key.create", "champion.bootstrap"]
    assert first["items"][0]["actor"] == str(actor)
    assert first["items"][0]["detail"] == {"role": "client"}
    assert ([item["action"] for item in rest["items"]], rest["next_cursor"]) == (["user.create"], None)


@pytest.mark.parametrize(
    "moment",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31T12:00:00+05:30",
        "2026-01-31",
        "24h",
        "-24h",
        "7d",
        "today",
        "yesterday",
    ],
)
async def test_times_are_read_as_people_write_them(platform: Platform, moment: str) -> None:
    async with platform.client(Role.ADMIN) as client:
        await client.post("/v1/predict", json={"text": "good"})
        since = (await client.get("/v1/predictions", params={"since": moment})).json()["items"]
        until = (await client.get("/v1/predictions", params={"until": moment})).json()["items"]
        audit = await client.get("/v1/audit", params={"until": moment})
        search = await client.post("/v1/similar", json={"text": "good", "filters": {"since": moment}})
    assert (len(since), len(until), audit.status_code, search.status_code) == (1, 0, 200, 200)


@pytest.mark.parametrize(
    "moment", ["soon", "2026-02-30", "2026-01-31T12:00:00", "2026-01-31T25:00:00Z", "1769860800", "7"]
)
async def test_a_time_that_can_t_be_read_says_what_can(platform: Platform, moment: str) -> None:
    async with platform.client() as client:
        query = await client.get("/v1/predictions", params={"since": moment})
        body = await client.post("/v1/similar", json={"text": "good", "filters": {"since": moment}})
    for answer in (query, body):
        assert answer.status_code == 422
        assert "write a time with its offset (2026-01-31T12:00:00Z)" in answer.json()["detail"]
        assert "Value error" not in answer.text
    assert query.json()["detail"].startswith("since: ")
    assert body.json()["detail"].startswith("filters.since: ")


async def test_a_key_expires_after_a_span_ahead(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as client:
        key = (await client.post("/v1/keys", json={"role": "client", "expires_at": "90d"})).json()
    assert datetime.fromisoformat(key["expires_at"]) > datetime.now(UTC) + timedelta(days=89)


async def test_a_version_may_be_a_number(platform: Platform) -> None:
    async with platform.client() as client:
        number = await client.post("/v1/predict", json={"text": "good", "version": 1})
        found = await client.post("/v1/similar", json={"text": "good", "filters": {"model_version": 1}})
        wrong = [
            await client.post("/v1/predict", json={"text": "good", "version": version})
            for version in (-1, 1.5, True, [])
        ]
    assert (number.json()["model_version"], found.status_code) == ("1", 200)
    assert [answer.status_code for answer in wrong] == [422] * 4


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        (
            "/v1/predict",
            {"text": "good", "lang": "en"},
            "lang: there is no such field: use user_id, model, version,",
        ),
        ("/v1/predict", {}, "text: it is missing"),
        (
            "/v1/experiments",
            {"model": "m", "challenger": "2", "share": 0.1, "policy": {"promote": True}},
            "policy.promote: there is no such field: use action, alpha,",
        ),
        (
            "/v1/similar",
            {"text": "good", "filters": {"label": "x"}},
            "filters.label: there is no such field: use sentiment, model_version,",
        ),
        (
            "/v1/similar",
            {"like": [{"id": "x"}]},
            "like.0.id: there is no such field: use text, prediction_id,",
        ),
    ],
)
async def test_a_field_that_isn_t_there_is_told_with_those_that_are(
    platform: Platform, path: str, body: dict[str, Any], detail: str
) -> None:
    async with platform.client(Role.ADMIN) as client:
        answer = await client.post(path, json=body)
    assert (answer.status_code, answer.json()["detail"][: len(detail)]) == (422, detail)


async def test_a_long_name_of_a_field_isn_t_repeated(platform: Platform) -> None:
    async with platform.client() as client:
        answer = await client.post("/v1/predict", json={"text": "good", "x" * 100_000: 1})
    assert (answer.status_code, len(answer.content) < 1000) == (422, True)


async def test_the_detail_names_the_fault(platform: Platform) -> None:
    async with platform.client() as client:
        one = (await client.post("/v1/predict", json={"text": " "})).json()
        more = (await client.post("/v1/predict", json={"text": "", "more": 1, "user_id": 3})).json()
        query = (await client.get("/v1/predictions", params={"limit": 0})).json()
        path = (await client.get("/v1/predictions/x")).json()
        header = (
            await client.post("/v1/predict", json={"text": "good"}, headers={"Idempotency-Key": "a b"})
        ).json()
        whole = (await client.post("/v1/predict", json=[])).json()
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good"]}
        inference = (await client.post("/v2/models/sentiment/infer", json={"inputs": [tensor]})).json()
    assert one["detail"] == "text: the text is empty or blank: send at least one visible character"
    assert more["detail"].startswith("user_id: ")
    assert more["detail"].endswith(" (and 2 more: see errors)")
    assert query["detail"].startswith("limit: ")
    assert path["detail"].startswith("prediction_id: ")
    assert header["detail"].startswith("Idempotency-Key: ")
    assert whole["detail"].startswith("body: ")
    assert inference["error"].count("shape") == 1


async def test_feedback_that_contradicts_itself_names_both_readings(platform: Platform) -> None:
    async with platform.client() as client:
        answer = (await client.post("/v1/predict", json={"text": "so good"})).json()
        given = {"prediction_id": answer["id"], "is_correct": False, "label": answer["sentiment"]}
        refused = await client.post("/v1/feedback", json=given)
    assert refused.status_code == 422
    assert "is_correct false says that positive is wrong" in refused.json()["detail"]
    assert "the label says positive" in refused.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/predictions?since=2026-02-01&until=2026-01-01",
        "/v1/audit?since=now&until=7d",
        "/v1/topics?since=yesterday&until=8d",
        "/v1/drift?reference_since=1d&reference_until=2d",
        "/v1/models/sentiment/diff?from=1&to=2&since=1d&until=2d",
    ],
)
async def test_a_window_that_ends_before_it_begins_is_refused(platform: Platform, path: str) -> None:
    async with platform.client(Role.ADMIN) as client:
        answer = await client.get(path)
    assert answer.status_code == 422
    assert "lies before" in answer.json()["detail"]


async def test_filters_that_end_before_they_begin_are_refused(platform: Platform) -> None:
    filters = {"since": "1d", "until": "2d"}
    async with platform.client() as client:
        answer = await client.post("/v1/similar", json={"text": "good", "filters": filters})
    assert answer.status_code == 422
    assert "until lies before since" in answer.json()["detail"]


async def test_a_key_that_would_never_work_is_refused(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as client:
        answer = await client.post("/v1/keys", json={"role": "client", "expires_at": "2001-01-01"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["body", "expires_at"]


async def test_a_body_may_begin_with_the_mark_that_editors_of_windows_write(platform: Platform) -> None:
    async with platform.client() as client:
        answer = await client.post(
            "/v1/predict",
            content=b'\xef\xbb\xbf{"text": "good"}',
            headers={"Content-Type": "application/json"},
        )
    assert answer.status_code == 201
