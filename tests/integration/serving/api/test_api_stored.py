"""The API over a real database: acknowledged requests are stored, refused ones leave no trace."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import openai
import pytest

from serving.core.caller import Role
from tests.support.app import Platform, add_key, stored_platform

pytestmark = pytest.mark.anyio

TABLES = ("text_inputs", "embeddings", "predictions", "feedback", "idempotency", "users", "audit_log")
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def platform(url: str) -> AsyncIterator[Platform]:
    async with stored_platform(url) as running:
        yield running


async def rows(platform: Platform) -> dict[str, int]:
    assert platform.database is not None
    async with platform.database.begin() as connection:
        return {
            table: (await connection.exec_driver_sql(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in TABLES
        }


async def test_a_text_is_predicted_found_by_meaning_and_judged(platform: Platform) -> None:
    async with platform.client() as client:
        prediction = (await client.post("/v1/predict", json={"text": "a great battery"})).json()
        await client.post("/v1/predict/batch", json={"texts": ["a bad screen", "the box was blue"]})
        found = (await client.post("/v1/similar", json={"text": "great battery", "k": 2})).json()
        judged = await client.post(
            "/v1/feedback",
            json={
                "prediction_id": prediction["id"],
                "is_correct": False,
                "label": "neutral",
                "comment": "irony",
            },
        )
        again = await client.post(
            "/v1/feedback", json={"prediction_id": prediction["id"], "is_correct": True}
        )
        one = (await client.get(f"/v1/predictions/{prediction['id']}")).json()
        listed = (await client.get("/v1/predictions", params={"has_feedback": "true"})).json()
        by_feedback = (
            await client.post(
                "/v1/similar", json={"prediction_id": prediction["id"], "filters": {"is_correct": True}}
            )
        ).json()
    assert found["results"][0]["text"] == "a great battery"
    assert found["results"][0]["predictions"] == [prediction]
    assert found["complete"] is True
    assert (judged.status_code, again.status_code) == (201, 201)
    assert {name: one[name] for name in prediction} == prediction
    assert [(given["is_correct"], given["label"], given["comment"]) for given in one["feedback"]] == [
        (True, None, None)
    ]
    assert [item["id"] for item in listed["items"]] == [prediction["id"]]
    assert [result["text_id"] for result in by_feedback["results"]] == [prediction["text_id"]]
    assert await rows(platform) | {"audit_log": 0} == {
        "text_inputs": 3, "embeddings": 3, "predictions": 3, "feedback": 1, "idempotency": 0, "users": 0,
        "audit_log": 0,
    }  # fmt: skip


async def test_a_vector_from_an_answer_finds_its_text(platform: Platform) -> None:
    async with platform.client() as client:
        result = (
            await client.post("/v1/predict", json={"text": "good day", "return_embedding": True})
        ).json()
        similar = (
            await client.post(
                "/v1/similar",
                json={"embedding": [7 * number for number in result["embedding"]], "exact": True},
            )
        ).json()
    assert similar["results"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert similar["exact"] is True


async def test_pages_follow_their_cursors(platform: Platform) -> None:
    async with platform.client() as client:
        response = await client.post("/v1/predict/batch", json={"texts": [f"text {n}" for n in range(5)]})
        ids, cursor = [], None
        while True:
            params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/v1/predictions", params=params)).json()
            ids += [item["id"] for item in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                break
        assert (await client.get("/v1/predictions", params={"cursor": "no cursor"})).status_code == 422
    assert ids == [each["id"] for each in reversed(response.json()["predictions"])]


async def test_a_client_sees_only_its_own_and_an_engineer_everything(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as admin:
        user = (await admin.post("/v1/users", json={"username": "ada", "email": "ada@example.org"})).json()
        keys = [
            (await admin.post("/v1/keys", json={"role": "client", "user_id": user["id"]})).json()
            for _ in range(2)
        ]
    async with platform.client(key=keys[0]["key"]) as first, platform.client(key=keys[1]["key"]) as second:
        mine = (await first.post("/v1/predict", json={"text": "mine"})).json()
        shared = await second.get(f"/v1/predictions/{mine['id']}")
    async with platform.client() as stranger:
        hidden = await stranger.get(f"/v1/predictions/{mine['id']}")
        unjudged = await stranger.post("/v1/feedback", json={"prediction_id": mine["id"], "is_correct": True})
        unsearched = await stranger.post("/v1/similar", json={"prediction_id": mine["id"]})
        empty = (await stranger.post("/v1/similar", json={"text": "mine"})).json()
        none = (await stranger.get("/v1/predictions")).json()
    async with platform.client(Role.ENGINEER) as engineer:
        seen = await engineer.get(f"/v1/predictions/{mine['id']}")
    assert (shared.status_code, seen.status_code) == (200, 200)
    assert [answer.status_code for answer in (hidden, unjudged, unsearched)] == [404, 404, 404]
    assert (empty["results"], none["items"]) == ([], [])


async def test_users_and_keys_are_made_listed_and_ended(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as admin:
        person = {"username": "ada", "email": "ada@example.org"}
        user = await admin.post("/v1/users", json=person)
        twice = await admin.post("/v1/users", json=person | {"email": "b@example.org"})
        malformed = await admin.post("/v1/users", json=person | {"email": "nothing"})
        got = await admin.get(f"/v1/users/{user.json()['id']}")
        absent = await admin.get(f"/v1/users/{uuid4()}")
        orphan = await admin.post("/v1/keys", json={"role": "client", "user_id": str(uuid4())})
        result = (await admin.post("/v1/keys", json={"role": "engineer", "rate_limit": 5})).json()
        async with platform.client(key=result["key"]) as holder:
            before = await holder.get("/v1/models")
            ended = await admin.delete(f"/v1/keys/{result['id']}")
            after = await holder.get("/v1/models")
        listed = {key["id"]: key for key in (await admin.get("/v1/keys")).json()["items"]}
        nothing = await admin.delete(f"/v1/keys/{uuid4()}")
    assert [answer.status_code for answer in (user, twice, malformed, got, absent, orphan, nothing)] == [
        201, 409, 422, 200, 404, 422, 404,
    ]  # fmt: skip
    assert [answer.status_code for answer in (before, ended, after)] == [200, 204, 401]
    assert listed[result["id"]]["revoked_at"] is not None
    assert "key" not in listed[result["id"]]


async def test_concurrent_duplicates_are_carried_out_once(platform: Platform) -> None:
    async with platform.client() as client:
        headers = {"Idempotency-Key": "order-1"}
        answers = await asyncio.gather(
            *(client.post("/v1/predict", json={"text": "good"}, headers=headers) for _ in range(8))
        )
        conflict = await client.post("/v1/predict", json={"text": "bad"}, headers=headers)
        other_route = await client.post("/v1/predict/batch", json={"texts": ["good"]}, headers=headers)
        prediction = answers[0].json()["id"]
        judged = await asyncio.gather(
            *(
                client.post(
                    "/v1/feedback", json={"prediction_id": prediction, "is_correct": True}, headers=headers
                )
                for _ in range(4)
            )
        )
    async with platform.client(Role.ENGINEER) as other:
        theirs = await other.post("/v1/predict", json={"text": "good"}, headers=headers)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert conflict.status_code == 409
    assert {answer.content for answer in judged} == {judged[0].content}
    assert (other_route.status_code, theirs.status_code) == (201, 201)
    counted = await rows(platform)
    assert (counted["predictions"], counted["feedback"], counted["idempotency"]) == (3, 1, 4)


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


BAD = {
    "empty text": ("/v1/predict", body(text=""), 422),
    "blank text": ("/v1/predict", body(text=" \u2003\n"), 422),
    "NUL": ("/v1/predict", body(text="a\x00b"), 422),
    "lone surrogate": ("/v1/predict", b'{"text": "a\\ud800b"}', 422),
    "20,001 characters": ("/v1/predict", body(text="x" * 20_001), 422),
    "no UTF-8": ("/v1/predict", b'{"text": "\xff"}', 422),
    "1,001 texts": ("/v1/predict/batch", body(texts=["x"] * 1001), 413),
    "no texts": ("/v1/predict/batch", body(texts=[]), 422),
    "one bad text among good ones": ("/v1/predict/batch", body(texts=["good", " "]), 422),
    "3 MiB": ("/v1/predict", body(text="x" * 3 * 1024 * 1024), 413),
    "a number for a text": ("/v1/predict", body(text=1), 422),
    "a string for a flag": ("/v1/predict", body(text="x", return_embedding="true"), 422),
    "a list for a body": ("/v1/predict", b"[]", 422),
    "unknown field": ("/v1/predict", body(text="x", txt="y"), 422),
    "unknown version": ("/v1/predict", body(text="x", version="99"), 404),
    "NUL in the unit": ("/v1/predict", body(text="x", unit="a\x00"), 422),
    "unknown user": ("/v1/predict", body(text="x", user_id=str(uuid4())), 422),
    "unknown prediction": ("/v1/feedback", body(prediction_id=str(uuid4()), is_correct=True), 404),
    "NUL in a comment": (
        "/v1/feedback", body(prediction_id=str(uuid4()), is_correct=True, comment="\x00"), 422
    ),
    "malformed JSON": ("/v1/predict", b'{"text": "x"', 422),
    "no body": ("/v1/predict", b"", 422),
    "deep JSON": ("/v1/predict", b"[" * 100_000, 422),
    "k=0": ("/v1/similar", body(text="x", k=0), 422),
    "k=101": ("/v1/similar", body(text="x", k=101), 422),
    "383 numbers": ("/v1/similar", body(embedding=[0.1] * 383), 422),
    "NaN": ("/v1/similar", body(embedding=[float("nan")] + [0.1] * 383), 422),
    "Infinity": ("/v1/similar", b'{"text": "x", "min_similarity": Infinity}', 422),
    "overflow": ("/v1/similar", b'{"embedding": [' + b",".join([b"1e999"] * 384) + b"]}", 422),
    "a vector of zeros": ("/v1/similar", body(embedding=[0] * 384), 422),
    "two queries": ("/v1/similar", body(text="x", prediction_id=str(uuid4())), 422),
    "no query": ("/v1/similar", body(k=3), 422),
    "search by an unknown prediction": ("/v1/similar", body(prediction_id=str(uuid4())), 404),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_a_problem_and_leaves_no_trace(platform: Platform, case: str) -> None:
    path, content, status = BAD[case]
    before = await rows(platform)
    async with platform.client() as client:
        answer = await client.post(path, content=content, headers=JSON | {"Idempotency-Key": "k"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) >= {"type", "title", "status", "detail", "instance"}
    assert answer.json()["status"] == status
    assert await rows(platform) == before


async def test_bad_credentials_are_problems_and_leave_no_trace(platform: Platform) -> None:
    expiring = await add_key(platform.services.accounts._keys, Role.CLIENT, seconds=-1)
    before = await rows(platform)
    good = {"text": "good"}
    async with platform.client(None) as client:
        nobody = await client.post("/v1/predict", json=good)
        wrong = await client.post("/v1/predict", json=good, headers={"X-API-Key": "vk_wrong"})
        over = await client.post("/v1/predict", json=good, headers={"X-API-Key": expiring.text})
    async with platform.client() as client:
        forbidden = await client.post("/v1/users", json={"username": "eve", "email": "eve@example.org"})
        media = await client.post(
            "/v1/predict", content=body(text="x"), headers={"Content-Type": "text/plain"}
        )
    answers = [nobody, wrong, over, forbidden, media]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 403, 415]
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    assert await rows(platform) == before


async def test_times_no_id_can_have_are_no_error(platform: Platform) -> None:
    async with platform.client() as client:
        for moment in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "1969-12-31T23:59:59+00:00"):
            for name in ("since", "until"):
                listed = await client.get("/v1/predictions", params={name: moment})
                response = await client.post("/v1/similar", json={"text": "x", "filters": {name: moment}})
                assert (listed.status_code, response.status_code) == (200, 200)


@pytest.mark.parametrize(
    ("moment", "status"),
    [("0", 422), ("1700000000", 422), ("2026-01-31T12:00:00", 422), ("2026-01-31", 200), ("yesterday", 200)],
)
async def test_a_time_has_its_offset_or_is_a_day(platform: Platform, moment: str, status: int) -> None:
    async with platform.client() as client:
        await client.post("/v1/predict", json={"text": "x"})
        listed = await client.get("/v1/predictions", params={"since": moment})
        response = await client.post("/v1/similar", json={"text": "x", "filters": {"since": moment}})
    assert (listed.status_code, response.status_code) == (status, status)


async def test_a_key_may_end_by_itself(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as admin:
        request = {"role": "client", "expires_at": "2099-01-31T12:00:00+01:00"}
        result = await admin.post("/v1/keys", json=request)
    assert result.json()["expires_at"] == "2099-01-31T11:00:00Z"
    async with platform.client(key=result.json()["key"]) as client:
        assert (await client.get("/v1/predictions")).status_code == 200
        platform.clock.ahead = datetime(2099, 2, 1, tzinfo=UTC).timestamp() - platform.clock.now()
        assert (await client.get("/v1/predictions")).status_code == 401


async def test_a_database_that_goes_away_is_503_until_it_is_back(platform: Platform) -> None:
    assert platform.database is not None
    async with platform.client() as client:
        assert (await client.post("/v1/predict", json={"text": "good"})).status_code == 201
        await platform.database._writers.close()
        answer = await client.post("/v1/predict", json={"text": "good"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


async def test_the_openai_client_works_unmodified(platform: Platform) -> None:
    key = platform.keys[Role.CLIENT].text
    async with (
        platform.client(None) as transport,
        openai.AsyncOpenAI(
            api_key=key, base_url="http://valence/v1", http_client=transport, max_retries=0
        ) as client,
    ):
        answer = await client.embeddings.create(model="test-space", input=["good day", "bad day"])
        single = await client.embeddings.create(model="test-space", input="good day", encoding_format="float")
        with pytest.raises(openai.NotFoundError, match="no such embedding model"):
            await client.embeddings.create(model="nothing", input="x")
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model="test-space", input=" ")
    assert [len(item.embedding) for item in answer.data] == [384, 384]
    assert answer.data[0].embedding == pytest.approx(single.data[0].embedding, abs=1e-6)
    assert (await rows(platform))["text_inputs"] == 0


async def test_an_erased_user_is_in_no_answer_any_more(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as admin, platform.client() as client:
        user = (await admin.post("/v1/users", json={"username": "ada", "email": "ada@example.org"})).json()
        body = {"text": "good for Ada", "user_id": user["id"]}
        headers = {"Idempotency-Key": "k1"}
        result = (await client.post("/v1/predict", json=body, headers=headers)).json()
        receipt = await admin.delete(f"/v1/users/{user['id']}/data")
        assert receipt.status_code == 200
        erased = receipt.json()["erased"]
        assert (erased["predictions"], erased["texts"], erased["embeddings"], erased["idempotency"]) == (
            1,
            1,
            1,
            1,
        )
        assert (await admin.get(f"/v1/predictions/{result['id']}")).status_code == 404
        assert (await admin.get("/v1/predictions", params={"user_id": user["id"]})).json()["items"] == []
        assert (await admin.post("/v1/similar", json={"text": "good for Ada"})).json()["results"] == []
        again = (await client.post("/v1/predict", json=body, headers=headers)).json()
        assert again["id"] != result["id"]
        erased_again = (await admin.delete(f"/v1/texts/{result['text_id']}")).json()["erased"]
        assert erased_again["predictions"] == 1


async def test_the_champion_of_a_moment_is_read_from_the_stored_history(platform: Platform) -> None:
    path = "/v1/models/sentiment"
    async with platform.client(Role.ENGINEER) as client:
        before = await client.get(f"{path}/champion")
        for version in ("3", "1"):
            await client.post(f"{path}/versions/{version}/promote", json={"force": True, "reason": "a test"})
        items = (await client.get(f"{path}/history")).json()["items"]
        now = (await client.get(f"{path}/champion")).json()
        shown = [(await client.get(f"{path}/champion", params={"at": item["from"]})).json() for item in items]
    assert before.status_code == 404
    assert [item["version"] for item in items[:2]] == ["1", "3"]
    assert (now, shown) == (items[0], items)
    assert (items[1]["to"], items[1]["reason"]) == (items[0]["from"], "a test")


async def test_the_audit_log_says_which_key_did_what(platform: Platform) -> None:
    async with platform.client(Role.ADMIN) as admin:
        user = (await admin.post("/v1/users", json={"username": "ada", "email": "ada@example.org"})).json()
        key = (await admin.post("/v1/keys", json={"role": "client", "user_id": user["id"]})).json()
        await admin.delete(f"/v1/keys/{key['id']}")
        actor = str(platform.keys[Role.ADMIN].id)
        first = (await admin.get("/v1/audit", params={"actor": actor, "limit": 2})).json()
        rest = (await admin.get("/v1/audit", params={"actor": actor, "cursor": first["next_cursor"]})).json()
        about = (await admin.get("/v1/audit", params={"subject": user["id"]})).json()
    assert [item["action"] for item in first["items"]] == ["key.revoke", "key.create"]
    assert [item["action"] for item in rest["items"]] == ["user.create"]
    assert {item["actor"] for item in first["items"] + rest["items"]} == {actor}
    assert [item["action"] for item in about["items"]] == ["user.create"]
    assert rest["next_cursor"] is None
