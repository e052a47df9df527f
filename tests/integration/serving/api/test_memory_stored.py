"""Search and second opinions over a real database: the same answers as over fakes, from real vectors."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serving.core.caller import Role
from tests.support.app import Platform, stored_platform

pytestmark = pytest.mark.anyio

BATTERY = ["the battery lasts long", "the battery lasts very long", "a battery that lasts long"]
SCREEN = ["the screen looks dim", "a very dim screen", "the screen was dim"]


@pytest.fixture
async def platform(url: str) -> AsyncIterator[Platform]:
    async with stored_platform(url) as running:
        yield running


async def predict(client: httpx.AsyncClient, *texts: str, **fields: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/predict/batch", json={"texts": list(texts), **fields})
    assert answer.status_code == 201
    result: list[dict[str, Any]] = answer.json()["predictions"]
    return result


async def judge(client: httpx.AsyncClient, prediction: dict[str, Any], label: str) -> None:
    content = {
        "prediction_id": prediction["id"],
        "is_correct": label == prediction["sentiment"],
        "label": label,
    }
    assert (await client.post("/v1/feedback", json=content)).status_code == 201


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["text"] for result in answer.json()["results"]]


async def test_every_form_of_search_over_real_vectors_and_words(platform: Platform) -> None:
    async with platform.client() as client:
        predictions = await predict(client, *BATTERY, *SCREEN)
        like = [{"prediction_id": predictions[0]["id"]}, {"text_id": predictions[1]["text_id"]}]
        unlike = [{"text": "battery that lasts"}]
        liked = await client.post("/v1/similar", json={"like": like, "k": 1, "counts": True})
        moved = await client.post(
            "/v1/similar", json={"like": [{"text": "the"}], "unlike": unlike, "k": 2, "exact": True}
        )
        fused = await client.post("/v1/similar", json={"text": BATTERY[0], "keywords": "dim -looks", "k": 6})
        words = await client.post("/v1/similar", json={"keywords": "dim -looks"})
        near = await client.post(
            "/v1/duplicates", json={"text_id": predictions[0]["text_id"], "min_similarity": 0.5}
        )
    assert texts(liked) == [BATTERY[2]]
    assert liked.json()["counts"]["sentiments"] == {"neutral": 1}
    assert set(texts(moved)) == {SCREEN[0], SCREEN[2]}
    ranks = {result["text"]: result["ranks"] for result in fused.json()["results"]}
    assert ranks[BATTERY[0]]["meaning"] == 1
    assert sorted(ranks[text]["keywords"] or 0 for text in SCREEN) == [0, 1, 2]
    by_words = [(result["text"], result["similarity"]) for result in words.json()["results"]]
    assert sorted(by_words) == [(text, None) for text in sorted(SCREEN[1:])]
    assert set(texts(near)) == {BATTERY[1], BATTERY[2]}


async def test_feedback_speaks_of_other_predictions(platform: Platform) -> None:
    long = [
        "so very long a battery",
        "a so very long battery",
        "battery so a very long",
        "very a so long battery",
    ]
    async with platform.client() as client:
        result = await predict(client, *long)
        for each in result[:3]:
            await judge(client, each, "negative")
        opinion = (await client.get(f"/v1/predictions/{result[3]['id']}/second-opinion")).json()
        explained = (await client.post("/v1/predict", json={"text": long[3], "explain": True})).json()
        body = (await client.get(f"/v1/predictions/{result[0]['id']}/corrections")).json()
        uncorrected = await client.get(f"/v1/predictions/{result[3]['id']}/corrections")
    async with platform.client(Role.ENGINEER) as engineer:
        everybodys = (await engineer.get(f"/v1/predictions/{result[3]['id']}/second-opinion")).json()
    assert (opinion["suggests"], opinion["agreement"], len(opinion["neighbours"])) == ("negative", 0, 3)
    assert explained["second_opinion"]["suggests"] == "negative"
    assert everybodys == opinion
    assert {fix["text"] for fix in body["fixes"]} == set(long[1:])
    assert all(fix["prediction"]["sentiment"] == "neutral" for fix in body["fixes"])
    assert (body["duplicates"], body["judged"], body["complete"]) == (3, 0, True)
    assert uncorrected.status_code == 409


async def test_the_whole_is_grouped_compared_and_queued(platform: Platform) -> None:
    battery = [f"the battery is good {number}" for number in range(30)]
    screen = [f"a screen broke at once {number}" for number in range(30)]
    async with platform.client(Role.ENGINEER) as client:
        old = await predict(client, *battery)
        new = await predict(client, *screen)
        await predict(client, *screen, version="1")
        await judge(client, old[0], "positive")
        for each in new[:3]:
            await judge(client, each, "positive")
        topics = (await client.get("/v1/topics", params={"topics": 2})).json()
        review = (await client.get("/v1/review", params={"limit": 5})).json()
        drift = (await client.get("/v1/drift", params={"since": new[0]["predicted_at"], "limit": 3})).json()
        diff = (await client.get("/v1/models/sentiment/diff", params={"from": "1", "to": "2"})).json()
    assert [topic["texts"] for topic in topics["topics"]] == [30, 30]
    assert {"battery", "screen"} <= {word for topic in topics["topics"] for word in topic["words"]}
    assert sorted(each["accuracy"][0]["accuracy"] for each in topics["topics"]) == [0, 1]
    assert (review["candidates"], review["judged"]) == (56, 4)
    assert [item["disagreement"] for item in review["items"]] == [1, 0], (
        "a text about each, as the rest is alike"
    )
    assert drift["embeddings"]["drifted"] is True
    assert drift["window"]["versions"] == {"1": 30}
    assert len(drift["new"]) == 3
    assert (diff["compared"], diff["differing"], diff["complete"]) == (30, 0, True)
