"""Search, history and second opinions over fakes: shapes, scopes, roles, refusals."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from serving.core.caller import Role
from tests.fakes.inference import vector_of
from tests.support.app import Platform, fake_platform

pytestmark = pytest.mark.anyio

BATTERY = ["the battery lasts long", "the battery lasts very long", "a battery that lasts long"]
SCREEN = ["the screen looks dim", "a very dim screen", "the screen was dim"]


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as running:
        yield running


async def predict(client: httpx.AsyncClient, *texts: str, **fields: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/predict/batch", json={"texts": list(texts), **fields})
    assert answer.status_code == 201
    result: list[dict[str, Any]] = answer.json()["predictions"]
    return result


async def judge(client: httpx.AsyncClient, prediction: dict[str, Any], *, label: str) -> None:
    content = {
        "prediction_id": prediction["id"],
        "is_correct": label == prediction["sentiment"],
        "label": label,
    }
    assert (await client.post("/v1/feedback", json=content)).status_code == 201


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["text"] for result in answer.json()["results"]]


async def test_like_these_and_not_like_those(platform: Platform) -> None:
    async with platform.client() as client:
        result = await predict(client, *BATTERY, *SCREEN)
        like = [{"prediction_id": result[0]["id"]}, {"text_id": result[1]["text_id"]}]
        liked = await client.post("/v1/similar", json={"like": like, "k": 1})
        unlike = [{"text": "battery long lasts"}, {"embedding": vector_of(BATTERY[2]).tolist()}]
        both = await client.post(
            "/v1/similar", json={"like": [{"text": "the"}], "unlike": unlike, "k": 2, "counts": True}
        )
        moved = await client.post(
            "/v1/similar", json={"text": "the", "like": [{"prediction_id": result[3]["id"]}], "k": 2}
        )
    assert texts(liked) == [BATTERY[2]], "the examples themselves are left out"
    assert set(texts(both)) == {SCREEN[0], SCREEN[2]}
    assert both.json()["counts"] == {
        "sentiments": {"neutral": 2},
        "versions": [{"model": "sentiment", "model_version": "2", "sentiments": {"neutral": 2}}],
    }
    assert SCREEN[2] in texts(moved)
    assert SCREEN[0] not in texts(moved)


async def test_words_and_meaning_are_fused_and_each_rank_is_shown(platform: Platform) -> None:
    async with platform.client() as client:
        await predict(client, *BATTERY, *SCREEN)
        answer = await client.post(
            "/v1/similar", json={"text": BATTERY[0], "keywords": "dim", "k": 6, "min_similarity": -1}
        )
        bounded = await client.post(
            "/v1/similar", json={"text": BATTERY[0], "keywords": "dim", "min_similarity": 0.97}
        )
    results = {result["text"]: result["ranks"] for result in answer.json()["results"]}
    assert results[BATTERY[0]] == {"score": round(1 / 61, 6), "meaning": 1, "keywords": None}
    assert sorted(results[text]["keywords"] for text in SCREEN) == [1, 2, 3]
    assert all(results[text]["meaning"] > 3 for text in SCREEN)
    scores = [result["ranks"]["score"] for result in answer.json()["results"]]
    assert scores == sorted(scores, reverse=True)
    assert texts(bounded) == [BATTERY[0]], "the bound holds for texts that words found"


async def test_words_alone_rank_the_texts_that_contain_them(platform: Platform) -> None:
    async with platform.client() as client:
        await predict(client, *BATTERY, *SCREEN)
        body = {"keywords": "dim", "k": 2, "counts": True}
        answer = (await client.post("/v1/similar", json=body)).json()
        unlike = await client.post("/v1/similar", json=body | {"unlike": [{"text": "x"}]})
        bounded = await client.post("/v1/similar", json=body | {"min_similarity": 0.5})
        nothing = await client.post("/v1/similar", json={"k": 2})
        none = (await client.post("/v1/similar", json={"keywords": "refund"})).json()
    assert [result["text"] in SCREEN for result in answer["results"]] == [True, True]
    assert [result["similarity"] for result in answer["results"]] == [None, None]
    assert [result["ranks"] for result in answer["results"]] == [
        {"score": round(1 / (60 + rank), 6), "meaning": None, "keywords": rank} for rank in (1, 2)
    ]
    assert (answer["exact"], answer["complete"]) == (True, True)
    assert sum(answer["counts"]["sentiments"].values()) == 2
    assert [unlike.status_code, bounded.status_code, nothing.status_code] == [422] * 3
    assert "keywords alone compare no meaning" in unlike.text
    assert "or else keywords" in nothing.text
    assert (none["results"], none["complete"]) == ([], True)


async def test_near_duplicates_are_without_the_text_itself(platform: Platform) -> None:
    async with platform.client() as client:
        result = await predict(client, *BATTERY, *SCREEN)
        far = await client.post("/v1/duplicates", json={"prediction_id": result[0]["id"]})
        near = await client.post(
            "/v1/duplicates", json={"text_id": result[0]["text_id"], "min_similarity": 0.5}
        )
        itself = await client.post("/v1/duplicates", json={"text": BATTERY[0]})
    assert texts(far) == []
    assert set(texts(near)) == {BATTERY[1], BATTERY[2]}
    assert texts(itself) == [BATTERY[0]]


BAD: dict[str, tuple[str, Any, int]] = {
    "nothing to be like": ("similar", {"k": 3}, 422),
    "only what not": ("similar", {"unlike": [{"text": "x"}]}, 422),
    "two queries": ("similar", {"text": "x", "prediction_id": str(uuid4())}, 422),
    "an empty example": ("similar", {"like": [{}]}, 422),
    "an example of two kinds": ("similar", {"like": [{"text": "x", "text_id": str(uuid4())}]}, 422),
    "an unknown example": ("similar", {"like": [{"text_id": str(uuid4())}]}, 404),
    "an unknown prediction": ("similar", {"like": [{"prediction_id": str(uuid4())}]}, 404),
    "too many examples": ("similar", {"like": [{"text": "x"}] * 21}, 422),
    "examples that cancel out": (
        "similar",
        {"like": [{"embedding": [1.0] * 384}, {"embedding": [-1.0] * 384}]},
        422,
    ),
    "a vector without a direction": ("similar", {"like": [{"embedding": [0.0] * 384}]}, 422),
    "no words": ("similar", {"text": "x", "keywords": ""}, 422),
    "duplicates of nothing": ("duplicates", {}, 422),
    "duplicates of an unknown text": ("duplicates", {"text_id": str(uuid4())}, 404),
    "a bound above 1": ("duplicates", {"text": "x", "min_similarity": 1.5}, 422),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_cant_be_sought_is_a_problem_that_says_why(platform: Platform, case: str) -> None:
    route, content, status = BAD[case]
    async with platform.client() as client:
        answer = await client.post(f"/v1/{route}", json=content)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_a_second_opinion_comes_from_nearby_texts_with_feedback(platform: Platform) -> None:
    async with platform.client() as client:
        result = await predict(client, *BATTERY, "long lasts the battery", *SCREEN)
        for each in result[1:4]:
            await judge(client, each, label="positive")
        await judge(client, result[0], label="negative")
        opinion = (await client.get(f"/v1/predictions/{result[0]['id']}/second-opinion")).json()
        lonely = (await client.get(f"/v1/predictions/{result[4]['id']}/second-opinion")).json()
        explained = await client.post("/v1/predict", json={"text": BATTERY[0], "explain": True})
        plain = await client.post("/v1/predict", json={"text": BATTERY[0]})
    async with platform.client(Role.CLIENT, key=None) as client:
        unknown = await client.get(f"/v1/predictions/{uuid4()}/second-opinion")
    assert (opinion["suggests"], opinion["agreement"], opinion["complete"]) == ("positive", 0, True)
    assert {each["text"] for each in opinion["neighbours"]} == {
        BATTERY[1],
        BATTERY[2],
        "long lasts the battery",
    }
    assert (lonely["suggests"], lonely["agreement"], lonely["neighbours"]) == (None, None, [])
    assert explained.status_code == 201
    assert explained.json()["second_opinion"]["suggests"] == "positive"
    assert "second_opinion" not in plain.json()
    assert unknown.status_code == 404


async def test_a_prediction_whose_second_opinion_fails_is_still_a_prediction(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    from db.errors import Unavailable

    async def down(*_: Any, **__: Any) -> Any:
        raise Unavailable("the replica is away")

    monkeypatch.setattr("tests.fakes.analytics.FakeLabelRepository.of_texts", down)
    headers = {"Idempotency-Key": "once"}
    async with platform.client() as client:
        answer = await client.post("/v1/predict", json={"text": "good", "explain": True}, headers=headers)
        monkeypatch.undo()
        again = await client.post("/v1/predict", json={"text": "good", "explain": True}, headers=headers)
    assert (answer.status_code, answer.json()["second_opinion"]) == (201, None)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["id"] == answer.json()["id"]
    assert again.json()["second_opinion"]["agreement"] is None
    assert platform.store is not None
    assert len(platform.store.predictions) == 1


async def test_one_correction_finds_what_else_it_would_mend(platform: Platform) -> None:
    async with platform.client() as client:
        result = await predict(
            client, "so very long a battery", "a so very long battery", "battery so a very long"
        )
        (other,) = await predict(client, "very long a so battery", version="1")
        path = f"/v1/predictions/{result[0]['id']}/corrections"
        before = await client.get(path)
        await judge(client, result[0], label="negative")
        await judge(client, result[1], label="neutral")
        body = (await client.get(path)).json()
        bounded = await client.get(path, params={"min_similarity": 2})
    assert before.status_code == 409
    assert "feedback" in before.json()["detail"]
    assert (body["sentiment"], body["champion"], body["duplicates"]) == ("negative", "2", 3)
    assert [fix["prediction"]["id"] for fix in body["fixes"]] == [result[2]["id"]]
    assert (body["unpredicted"], body["judged"], body["agreeing"]) == (1, 1, 0)
    assert other["model_version"] == "1"
    assert body["complete"] is True
    assert bounded.status_code == 422


FOREIGN = ["der battery ist long", "long der battery ist", "ist long der battery", "battery ist long der"]
UNKNOWN = ["👎", "👎 👎", "👎 👎 👎", "👎 👎 👎 👎", "👎 👎 👎 👎 👎"]


async def test_texts_in_other_languages_are_duplicates_but_neither_vote_nor_are_corrected(
    platform: Platform,
) -> None:
    async with platform.client() as client:
        foreign = await predict(client, *FOREIGN)
        (known,) = await predict(client, "long der battery is")
        for each in foreign[1:]:
            await judge(client, each, label="negative")
        opinions = [
            (await client.get(f"/v1/predictions/{each['id']}/second-opinion")).json()
            for each in (known, foreign[0])
        ]
        twins = await client.post("/v1/duplicates", json={"prediction_id": foreign[0]["id"]})
        body = (await client.get(f"/v1/predictions/{foreign[1]['id']}/corrections")).json()
    assert [(each["suggests"], each["neighbours"]) for each in opinions] == [(None, [])] * 2
    assert set(texts(twins)) == set(FOREIGN[1:])
    assert (body["duplicates"], body["unsupported"], body["fixes"]) == (3, 3, [])


async def test_texts_that_an_encoder_doesnt_know_are_no_duplicates_and_have_no_votes_and_corrections(
    platform: Platform,
) -> None:
    async with platform.client() as client:
        result = await predict(client, *UNKNOWN)
        for each in result[1:]:
            await judge(client, each, label="negative")
        opinion = (await client.get(f"/v1/predictions/{result[0]['id']}/second-opinion")).json()
        twins = await client.post("/v1/duplicates", json={"prediction_id": result[0]["id"]})
        of_text = await client.post("/v1/duplicates", json={"text": UNKNOWN[0]})
        body = (await client.get(f"/v1/predictions/{result[1]['id']}/corrections")).json()
    async with platform.client(Role.ENGINEER) as engineer:
        review = (await engineer.get("/v1/review")).json()
    assert (opinion["suggests"], opinion["neighbours"]) == (None, [])
    assert (texts(twins), texts(of_text)) == ([], [])
    assert (body["duplicates"], body["fixes"]) == (0, [])
    assert (review["candidates"], review["items"]) == (0, [])


async def test_other_holders_texts_are_never_examples_votes_or_fixes(platform: Platform) -> None:
    async with platform.client(Role.ENGINEER) as engineer:
        result = await predict(engineer, *BATTERY, "long lasts the battery")
        for each in result:
            await judge(engineer, each, label="positive")
    async with platform.client() as client:
        (mine,) = await predict(client, "the long battery lasts")
        opinion = (await client.get(f"/v1/predictions/{mine['id']}/second-opinion")).json()
        refused = [
            await client.get(f"/v1/predictions/{result[0]['id']}/{what}")
            for what in ("second-opinion", "corrections")
        ]
        refused.append(await client.post("/v1/similar", json={"like": [{"text_id": result[0]["text_id"]}]}))
        refused.append(await client.post("/v1/duplicates", json={"prediction_id": result[0]["id"]}))
        words = await client.post("/v1/similar", json={"text": "battery", "keywords": "lasts"})
        alone = await client.post("/v1/similar", json={"keywords": "lasts"})
    assert opinion["neighbours"] == []
    assert [answer.status_code for answer in refused] == [404] * 4
    assert texts(words) == texts(alone) == ["the long battery lasts"]


async def test_only_engineers_look_at_the_whole(platform: Platform) -> None:
    paths = ["/v1/topics", "/v1/review", "/v1/drift", "/v1/models/sentiment/diff?from=1&to=2"]
    async with platform.client() as client, platform.client(Role.ENGINEER) as engineer:
        refused = [(await client.get(path)).status_code for path in paths]
        empty = [await engineer.get(path) for path in paths]
        unknown = [
            (await engineer.get(path)).status_code
            for path in (
                "/v1/topics?model=x",
                "/v1/review?model=x",
                "/v1/drift?model=x",
                "/v1/models/x/diff?from=1&to=2",
                "/v1/models/sentiment/diff?from=1&to=77",
            )
        ]
        bad = [
            (await engineer.get(path)).status_code
            for path in ("/v1/topics?topics=0", "/v1/models/sentiment/diff", "/v1/drift?since=soon")
        ]
    assert refused == [403] * 4
    assert [answer.status_code for answer in empty] == [200] * 4
    assert empty[0].json()["topics"] == []
    assert empty[2].json()["embeddings"] is None
    assert empty[2].json()["reason"].count("has no texts of this model") == 2
    assert unknown == [404] * 5
    assert bad == [422] * 3


async def test_topics_group_a_window_and_say_how_it_was_judged(platform: Platform) -> None:
    battery = [f"{text} {word}" for text in BATTERY for word in ("good", "great", "love", "hate")]
    screen = [f"{text} {word}" for text in SCREEN for word in ("today", "now", "here", "again")]
    async with platform.client(Role.ENGINEER) as client:
        result = await predict(client, *battery, *screen)
        await judge(client, result[0], label="positive")
        await judge(client, result[1], label="neutral")
        body = (await client.get("/v1/topics", params={"topics": 2})).json()
        early = (await client.get("/v1/topics", params={"until": "2001-01-01T00:00:00Z"})).json()
        ancient = await client.get("/v1/topics", params={"until": "0001-01-01T00:00:00Z"})
    assert body["sampled"] == 24
    assert sum(topic["texts"] for topic in body["topics"]) == 24
    about = next(topic for topic in body["topics"] if "battery" in topic["words"])
    assert about["accuracy"] == [{"model_version": "2", "judged": 2, "right": 1, "accuracy": 0.5}]
    assert about["sentiments"]["positive"] >= 6
    assert len(about["examples"]) == 3
    assert (early["sampled"], early["topics"]) == (0, [])
    assert ancient.status_code == 200


async def test_the_review_queue_leaves_out_what_was_judged_and_what_is_like_it(platform: Platform) -> None:
    async with platform.client(Role.ENGINEER) as client:
        result = await predict(client, *BATTERY, "lasts long the battery", *SCREEN)
        await judge(client, result[1], label="negative")
        lone = (await client.get("/v1/review", params={"limit": 5})).json()
        for again in await predict(client, f"{BATTERY[1]} now", f"{BATTERY[1]} today"):
            await judge(client, again, label="negative")
        body = (await client.get("/v1/review", params={"limit": 5})).json()
    assert {item["disagreement"] for item in lone["items"]} == {0}, "one judged text is no quorum"
    assert (body["candidates"], body["judged"]) == (6, 3)
    assert result[1]["id"] not in {item["prediction_id"] for item in body["items"]}
    assert len({item["text"] for item in body["items"]} & {BATTERY[0], "lasts long the battery"}) == 1
    scores = [item["score"] for item in body["items"]]
    assert scores == sorted(scores, reverse=True)
    assert body["items"][0]["disagreement"] == 1
    for item in body["items"]:
        wanted = item["density"] * (item["uncertainty"] + item["disagreement"]) / 2
        assert item["score"] == pytest.approx(wanted, abs=1e-5)


async def test_a_diff_shows_where_versions_differ_shadows_included(platform: Platform) -> None:
    assert platform.store is not None
    async with platform.client(Role.ENGINEER) as client:
        ours = await predict(client, *BATTERY, *SCREEN)
        theirs = await predict(client, *BATTERY, *SCREEN, version="1")
        for result in theirs[:3]:
            row = platform.store.predictions[UUID(result["id"])]
            platform.store.predictions[row.id] = replace(row, label="negative", arm="shadow")
        path = "/v1/models/sentiment/diff"
        body = (await client.get(path, params={"from": "1", "to": "2", "was": "negative"})).json()
        none = (await client.get(path, params={"from": "1", "to": "2", "now": "positive"})).json()
        back = (await client.get(path, params={"from": "2", "to": "1"})).json()
    assert (body["compared"], body["differing"], body["sampled"]) == (6, 3, 3)
    assert body["matrix"]["negative"] == {"negative": 0, "neutral": 3, "positive": 0}
    examples = [example for cluster in body["clusters"] for example in cluster["examples"]]
    assert {example["text"] for example in examples} == set(BATTERY)
    assert examples[0]["from"]["sentiment"] == "negative"
    assert {example["to"]["prediction_id"] for example in examples} == {each["id"] for each in ours[:3]}
    assert (none["differing"], none["clusters"]) == (3, [])
    assert back["matrix"]["neutral"]["negative"] == 3


async def test_the_words_of_a_diff_set_its_texts_apart_from_the_window(platform: Platform) -> None:
    assert platform.store is not None
    async with platform.client(Role.ENGINEER) as client:
        await predict(client, *[f"the battery is good {n}" for n in range(12)])
        texts = [f"the refund of the battery is late {n}" for n in range(8)]
        await predict(client, *texts)
        for result in await predict(client, *texts, version="1"):
            row = platform.store.predictions[UUID(result["id"])]
            platform.store.predictions[row.id] = replace(row, label="negative", arm="shadow")
        body = (
            await client.get("/v1/models/sentiment/diff", params={"from": "1", "to": "2", "clusters": 1})
        ).json()
    assert [set(cluster["words"]) for cluster in body["clusters"]] == [{"refund", "late"}]


async def test_drift_compares_a_window_with_what_was_before(platform: Platform) -> None:
    async with platform.client(Role.ENGINEER) as client:
        old = await predict(client, *[f"the battery is good {n}" for n in range(30)])
        new = await predict(client, *[f"a screen broke at once {n}" for n in range(30)])
        edge = new[0]["predicted_at"]
        body = (await client.get("/v1/drift", params={"since": edge, "limit": 3})).json()
        none = (
            await client.get(
                "/v1/drift",
                params={
                    "since": old[0]["predicted_at"],
                    "until": edge,
                    "reference_until": old[0]["predicted_at"],
                },
            )
        ).json()
    assert (body["window"]["sampled"], body["reference"]["sampled"]) == (30, 30)
    assert body["embeddings"]["drifted"] is True
    assert body["embeddings"]["p_value"] == 1 / 500
    assert body["window"]["sentiments"] == {"negative": 30}
    assert body["reference"]["sentiments"] == {"positive": 30}
    assert body["stability"] == {"sentiments": None, "confidences": None}, "30 texts say nothing"
    assert all("screen" in text["text"] for text in body["new"])
    assert len(body["new"]) == 3
    assert (none["embeddings"], none["new"], body["reason"]) == (None, [], None)
    assert none["reason"].startswith("the reference from ")
    assert "has no texts of this model, and a comparison needs 20" in none["reason"]
    assert "window" not in none["reason"], "it has 30 texts"
