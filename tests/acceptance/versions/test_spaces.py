"""The embedding space of a live platform changes under load, and back, and no request fails."""

from functools import partial
from pathlib import Path
from typing import Any

from tests.support.clients import Clients
from tests.support.clock import eventually
from tests.support.live import LivePlatform
from tests.support.versions import registry_of, twin_encoder


def test_the_embedding_space_changes_under_load_and_back(platform: LivePlatform, tmp_path: Path) -> None:
    registry, old, new = registry_of(platform), "all-MiniLM-L6-v2", "another-space"
    twin_encoder(
        registry, tmp_path / "encoder", "another space's", "c" * 64, space=new, of=registry.space_encoder(old)
    )

    def spaces() -> dict[str, dict[str, Any]]:
        with platform.client() as client:
            return {each["name"]: each for each in client.get("/v1/spaces").json()["items"]}

    def found(prediction: dict[str, Any]) -> bool:
        """Return whether a search by a prediction's text finds it, once and with the highest similarity."""
        with platform.client() as client:
            answer = client.post("/v1/similar", json={"prediction_id": prediction["id"], "k": 100})
        results = answer.json().get("results", [])
        near = [each["similarity"] for each in results if each["text_id"] == prediction["text_id"]]
        return len(near) == 1 and near[0] > 0.999

    def switched(space: str) -> bool:
        """Switch the space; the platform refuses while the re-embedding is behind."""
        return platform.valence("spaces", "switch", space).returncode == 0

    with Clients(platform, 1) as clients:
        clients.wait_for(20)
        begun = platform.valence("spaces", "build", new)
        assert begun.returncode == 0, begun.stderr
        eventually(lambda: spaces()[new]["state"] == "whole", within=90, what="the other space is whole")
        eventually(partial(switched, new), within=60, what="the other space is switched to")
        eventually(lambda: spaces()[new]["answers"], within=90, what="the other space answers")
        clients.wait_for(20)
        # The previous encoder still runs: one round of the reconciler is enough to go back.
        eventually(partial(switched, old), within=60, what="the first space is switched to")
        eventually(lambda: spaces()[old]["answers"], within=10, what="the first space answers again")
        clients.wait_for(20)
        eventually(partial(switched, new), within=60, what="the other space is switched to again")
        eventually(lambda: spaces()[new]["answers"], within=10, what="the other space answers again")
        clients.wait_for(20)
    assert not clients.failures
    for answer in clients.answers[:: len(clients.answers) // 20]:
        eventually(partial(found, answer), within=20, what="a text is found in the other space")
    eventually(partial(switched, old), within=60, what="the first space is switched to for good")
    eventually(lambda: spaces()[old]["answers"], within=10, what="the first space answers for good")
