"""The same platform on an external PostgreSQL and MLflow."""

import json
from pathlib import Path

from tests.support.classifiers import tiny_classifier
from tests.support.clock import eventually
from tests.support.live import LivePlatform

MAPPING = "negative=LABEL_0,neutral=LABEL_1,positive=LABEL_2"


def test_it_runs_on_an_external_database_and_registry(watched: LivePlatform, tmp_path: Path) -> None:
    with watched.client() as client:
        assert not (watched.home / "postgres").exists()
        response = client.post("/v1/predict", json={"text": "The battery lasts for days, I love it!"})
        assert (response.status_code, response.json()["sentiment"]) == (201, "positive")
        body = client.post("/v1/similar", json={"text": "great battery life", "k": 1}).json()
        assert body["results"][0]["text_id"] == response.json()["text_id"]
        versions = client.get("/v1/models/sentiment").json()["versions"]
        assert {each["version"]: each["state"] for each in versions if each["kind"] != "head"} == {
            "1": "ready",
            "3": "ready",
        }

        classifier = tiny_classifier(tmp_path / "classifier")
        arguments = ("models", "import", str(classifier.folder), "--labels", MAPPING, "--json")
        done = watched.valence(*arguments)
        assert done.returncode == 0, done.stderr
        imported = json.loads(done.stdout)
        assert (imported["version"], imported["kind"]) == ("4", "classifier")

        def listed() -> bool:
            shown = client.get("/v1/models/sentiment").json()["versions"]
            return imported["encoder"] in [each["encoder"] for each in shown if each["version"] == "4"]

        eventually(listed, within=10, what="the imported version is listed")
