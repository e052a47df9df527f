"""A version's life on a live platform: evaluated beside serving, promoted, moved by another client, rolled back."""

import json
from typing import Any

from db.connection.databases import ensure_sibling
from db.embedded.server import EmbeddedPostgres
from registry.store.model_registry import CHAMPION, ModelRegistry
from tests.support.clock import eventually
from tests.support.live import LivePlatform


def champion(platform: LivePlatform) -> str:
    with platform.client() as client:
        answer: dict[str, Any] = client.post("/v1/predict", json={"text": "so good"}).json()
    return str(answer["model_version"])


def history(platform: LivePlatform) -> list[tuple[str, str]]:
    done = platform.valence("models", "history", "--json")
    assert done.returncode == 0, done.stderr
    return [(item["act"], item["version"]) for item in json.loads(done.stdout)["items"]]


def test_a_version_is_measured_promoted_followed_and_rolled_back(platform: LivePlatform) -> None:
    with platform.client() as client:
        client.post("/v1/predict/batch", json={"texts": [f"so good, number {n}" for n in range(50)]})
    missing = platform.valence("models", "promote", "2")
    assert missing.returncode == 1
    assert "evaluation missing" in missing.stderr
    measured = platform.valence("models", "evaluate", "1", "--wait", "--json")
    assert measured.returncode == 0, measured.stderr + platform.log()
    version = json.loads(measured.stdout)
    report = version["evaluations"][0]["report"]
    assert report["held_out"]["texts"] == 2427
    assert report["replay"]["champion_version"] == "3"
    assert report["replay"]["texts"] > 40
    assert not version["gates"]["passed"]
    refused = platform.valence("models", "promote", "1")
    assert (refused.returncode, "a gate failed" in refused.stderr) == (1, True)
    forced = platform.valence("models", "promote", "1", "--force", "--reason", "to see the lexicon")
    assert forced.returncode == 0, forced.stderr
    eventually(lambda: champion(platform) == "1", within=2, what="version 1 answers")
    assert platform.valence("models", "promote", "3", "--json").returncode == 0
    eventually(lambda: champion(platform) == "3", within=2, what="version 3 answers")
    another = ModelRegistry(
        ensure_sibling(EmbeddedPostgres(platform.home).url("valence"), "_mlflow"),
        artifact_root=platform.home / "artifacts",
    )
    another.set_alias("sentiment", CHAMPION, "1")
    eventually(lambda: champion(platform) == "1", within=2, what="the alias is followed")
    eventually(lambda: history(platform)[0] == ("external", "1"), within=5, what="it is in the history")
    assert platform.valence("models", "rollback", "--reason", "by mistake").returncode == 0
    eventually(lambda: champion(platform) == "3", within=2, what="the rollback is followed")
    acts = history(platform)
    assert acts[:4] == [("rollback", "3"), ("external", "1"), ("promote", "3"), ("promote", "1")]
    assert acts[-1] == ("bootstrap", "3")
