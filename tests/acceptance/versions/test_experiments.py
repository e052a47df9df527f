"""Experiments that feedback decides: a better challenger is promoted by its policy, a worse one is removed.

Labels are human ratings of held-out texts; each text is its own unit.
"""

import asyncio
from typing import Any

import httpx
import psycopg

from db.embedded.server import EmbeddedPostgres
from registry.bundles.bundle import LABELS
from registry.data.held_out import HeldOutSet
from registry.experiments import decisions
from registry.experiments.policies import Policy
from registry.store.model_registry import CHAMPION, MODEL
from tests.support.clock import eventually
from tests.support.live import LivePlatform
from tests.support.versions import registry_of

LEXICON, JOINT = "1", "3"
AT_ONCE = 16
POLICY = {"action": "decide", "min_units": 100, "guardrails": {"max_latency_ratio": None}}


def champion(platform: LivePlatform) -> str:
    with platform.client() as client:
        return str(client.post("/v1/predict", json={"text": "who is it?"}).json()["model_version"])


def start_experiment(platform: LivePlatform, challenger: str, **fields: Any) -> str:
    body = {"model": MODEL, "challenger": challenger, "share": 0.5, "policy": POLICY} | fields
    with platform.client() as client:
        response = client.post("/v1/experiments", json=body)
        assert response.status_code == 201, response.text
        return str(response.json()["id"])


def get_experiment(platform: LivePlatform, experiment: str) -> dict[str, Any]:
    with platform.client() as client:
        report: dict[str, Any] = client.get(f"/v1/experiments/{experiment}").json()
        return report


async def judge_until_stopped(platform: LivePlatform, experiment: str) -> None:
    """Predict held-out texts, and give their ratings as feedback until the experiment stops."""
    held = HeldOutSet.load_builtin()
    waiting = list(enumerate(zip(held.texts, held.labels.tolist(), strict=True)))
    async with platform.async_client() as client:

        async def work() -> None:
            while waiting:
                number, (text, label) = waiting.pop()
                await predict_and_judge(client, text, LABELS[label], f"{experiment} {number}")
                if number % 50 == 0:
                    body = (await client.get(f"/v1/experiments/{experiment}")).json()
                    if body["state"] == "stopped":
                        waiting.clear()

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def predict_and_judge(client: httpx.AsyncClient, text: str, label: str, unit: str) -> None:
    response = await client.post("/v1/predict", json={"text": text, "unit": unit})
    assert response.status_code == 201, response.text
    prediction = response.json()
    judgement = {
        "prediction_id": prediction["id"],
        "is_correct": prediction["sentiment"] == label,
        "label": label,
    }
    feedback = await client.post("/v1/feedback", json=judgement)
    assert feedback.status_code == 201, feedback.text


def list_audited_actions(platform: LivePlatform, experiment: str) -> list[str]:
    with psycopg.connect(EmbeddedPostgres(platform.home).url("valence")) as connection:
        rows = connection.execute(
            "SELECT action FROM audit_log WHERE subject = %s ORDER BY id", (experiment,)
        ).fetchall()
    return [row[0] for row in rows]


def test_the_better_challenger_is_promoted_and_the_worse_one_sent_away(platform: LivePlatform) -> None:
    registry = registry_of(platform)
    registry.set_alias(MODEL, CHAMPION, LEXICON)
    eventually(lambda: champion(platform) == LEXICON, within=10, what="the lexicon answers")
    # All of them are measured in `test_promotions.py`.
    registry.put_held_out(HeldOutSet(examples=HeldOutSet.load_builtin().examples[::6]), model=MODEL)
    done = platform.valence("models", "evaluate", JOINT, "--wait")
    assert done.returncode == 0, done.stderr

    better = start_experiment(platform, JOINT)
    asyncio.run(judge_until_stopped(platform, better))
    eventually(lambda: champion(platform) == JOINT, within=10, what="the better one answers")
    eventually(
        lambda: get_experiment(platform, better)["state"] == "stopped", within=10, what="the experiment ends"
    )
    result = get_experiment(platform, better)
    assert result["reason"].startswith("promoted: ")
    assert result["verdict"]["verdict"] == "better"
    assert not result["sample_ratio"]["mismatch"]
    (decided,) = result["decisions"]
    again = decisions.decide(decisions.Evidence.parse(decided["evidence"]), Policy.parse(decided["policy"]))
    assert (again.action, again.reason) == (decided["action"], decided["reason"])
    assert again.numbers == decided["numbers"]

    worse = start_experiment(platform, LEXICON)
    asyncio.run(judge_until_stopped(platform, worse))
    eventually(
        lambda: get_experiment(platform, worse)["state"] == "stopped", within=10, what="the experiment ends"
    )
    result = get_experiment(platform, worse)
    assert [each["verdict"] for each in result["decisions"]] == ["worse"]
    assert champion(platform) == JOINT

    with platform.client() as client:
        history = client.get(f"/v1/models/{MODEL}/history").json()["items"]
    assert [(each["act"], each["version"]) for each in history[:2]] == [
        ("policy", JOINT),
        ("external", LEXICON),
    ]
    assert history[0]["evidence"]["decision"]["verdict"] == "better"
    assert list_audited_actions(platform, better) == ["experiment.create", "experiment.stop"]
    assert list_audited_actions(platform, worse) == ["experiment.create", "experiment.stop"]


def test_a_shadow_scores_what_the_champion_answers_and_is_judged_by_its_feedback(
    platform: LivePlatform,
) -> None:
    experiment = start_experiment(platform, LEXICON, share=1.0, shadow=True, policy=None)
    with platform.client() as client:
        eventually(
            lambda: (
                client.post("/v1/predict", json={"text": "is it on?"}).json()["experiment_id"] == experiment
            ),
            within=5,
            what="the experiment routes",
        )
        body = client.post("/v1/predict", json={"text": "an utter delight"}).json()
        assert (body["arm"], body["model_version"]) == ("champion", JOINT)
        client.post("/v1/feedback", json={"prediction_id": body["id"], "is_correct": True})
        eventually(
            lambda: (
                {arm["arm"]: arm["feedback"] for arm in get_experiment(platform, experiment)["arms"]}
                == {"champion": 1, "shadow": 1}
            ),
            within=10,
            what="both arms are judged",
        )
        shadows = client.get("/v1/predictions", params={"arm": "shadow"}).json()["items"]
        assert {each["model_version"] for each in shadows} == {LEXICON}
        client.post(f"/v1/experiments/{experiment}/stop")


def test_a_change_of_traffic_is_followed_within_a_second(platform: LivePlatform) -> None:
    experiment = start_experiment(platform, LEXICON, share=0.0, policy=None)
    with platform.client() as client:

        def arm() -> str:
            return str(client.post("/v1/predict", json={"text": "whose is it?", "unit": "ada"}).json()["arm"])

        eventually(
            lambda: (
                client.post("/v1/predict", json={"text": "is it on?"}).json()["experiment_id"] == experiment
            ),
            within=5,
            what="the experiment routes",
        )
        assert arm() == "champion"
        client.patch(f"/v1/experiments/{experiment}", json={"share": 1.0})
        eventually(lambda: arm() == "challenger", within=1, what="the share is followed")
        client.post(f"/v1/experiments/{experiment}/stop")
        eventually(lambda: arm() == "champion", within=1, what="the stop is followed")
