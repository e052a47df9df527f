"""The takeover of a home that an earlier release filled: it starts, answers, and finds what was stored."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from db.backup.archive import BackupWriter
from db.embedded.server import EmbeddedPostgres
from serving.core.connections import DATABASE, REGISTRY_SUFFIX
from tests.support.live import LivePlatform, build_encoders, unstarted_platform

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "e3a047c"
BUILTIN = ROOT / "registry" / "builtin"
FACTS: dict[str, Any] = json.loads((DATA / "facts.json").read_text())


def old_backup(folder: Path) -> Path:
    """Return the backup of the old home with its encoders, which are built anew because git doesn't hold them."""
    encoders = {digest[:16]: built for digest, built in build_encoders().items()}
    artifacts = folder / "artifacts"
    for run, name in FACTS["artifacts"].items():
        target = artifacts / run / "artifacts"
        if name == "held-out":
            target.mkdir(parents=True)
            shutil.copy(BUILTIN / "held-out" / "held-out.jsonl.gz", target)
        else:
            source = encoders[name.split()[1]] if name.startswith("encoder ") else BUILTIN / name
            shutil.copytree(source, target / "bundle")
    with BackupWriter(folder / "old.backup") as writer:
        for name in ("database.dump", "registry.dump"):
            writer.add(name, DATA / name)
        writer.add_folder("artifacts", artifacts)
        writer.add_text("installation.key", FACTS["installation_key"])
        writer.finish(
            contents="dump", release="0.1.0", schema="0010", server="18", artifacts=FACTS["artifacts_uri"]
        )
    shutil.rmtree(artifacts)
    return folder / "old.backup"


def register_rebuilt_encoders(home: Path) -> None:
    """Give the encoders' entries in MLflow the digests of the bundles built here, which differ by processor."""
    server = EmbeddedPostgres(home)
    server.start()
    try:
        with psycopg.connect(server.url(DATABASE + REGISTRY_SUFFIX)) as connection:
            for digest, built in build_encoders().items():
                now = json.loads((built / "manifest.json").read_text())["digest"]
                then = FACTS["encoder_bundles"][digest[:16]]
                changed = connection.execute(
                    "UPDATE model_version_tags SET value = %s WHERE value = %s", (now, then)
                )
                assert changed.rowcount == 1
    finally:
        server.stop()


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    file = old_backup(tmp_path_factory.mktemp("old"))
    with unstarted_platform(fresh=True) as platform:
        done = platform.valence("db", "restore", str(file))
        assert done.returncode == 0, done.stderr
        file.unlink()
        register_rebuilt_encoders(platform.home)
        platform.up()
        yield platform


def as_client(platform: LivePlatform) -> httpx.Client:
    """Yield the client whose key the old release created."""
    headers = {"Authorization": f"Bearer {FACTS['client_key']}"}
    return httpx.Client(base_url=platform.url, headers=headers, timeout=60)


def test_every_prediction_is_there_with_its_first_answer(taken_over: LivePlatform) -> None:
    with taken_over.client() as client:
        for before in FACTS["predictions"]:
            now = client.get(f"/v1/predictions/{before['id']}").raise_for_status().json()
            assert {name: now[name] for name in before} == before


def test_a_text_of_then_is_answered_as_then_and_met_again(taken_over: LivePlatform) -> None:
    before = FACTS["predictions"][0]
    with taken_over.client() as client:
        now = client.post("/v1/predict", json={"text": FACTS["text"]}).raise_for_status().json()
    assert now["text_id"] == before["text_id"]
    assert now["model_version"] == before["model_version"]
    assert now["sentiment"] == before["sentiment"]
    # The encoder is built anew, maybe on another processor.
    assert now["confidence"] == pytest.approx(before["confidence"], abs=0.05)


def test_an_old_key_finds_by_meaning_what_is_its_owners(taken_over: LivePlatform) -> None:
    with as_client(taken_over) as client:
        listed = client.get("/v1/predictions", params={"limit": 100}).raise_for_status().json()["items"]
        assert {each["id"] for each in listed} == set(FACTS["own_predictions"])
        body = client.post("/v1/similar", json={"text": FACTS["text"], "k": 3}).raise_for_status().json()
    assert {each["id"] for each in listed} == set(FACTS["own_predictions"])
    near = body["results"][0]
    assert near["text"] == FACTS["text"]
    assert near["similarity"] > 0.95
    assert any(each["is_correct"] for each in near["feedback"])


def test_champions_and_experiments_go_on(taken_over: LivePlatform) -> None:
    with taken_over.client() as client:
        history = client.get("/v1/models/sentiment/history").raise_for_status().json()["items"]
        running = client.get(f"/v1/experiments/{FACTS['running_experiment']}").raise_for_status().json()
        stopped = client.get(f"/v1/experiments/{FACTS['stopped_experiment']}").raise_for_status().json()
        versions = client.get("/v1/models/sentiment").raise_for_status().json()["versions"]
    assert [each["version"] for each in history] == ["3", "2", "3"]
    assert running["stopped_at"] is None
    assert stopped["stopped_at"] is not None
    assert {each["version"]: "champion" in each["aliases"] for each in versions} == {
        "1": False,
        "2": False,
        "3": True,
    }


def test_what_was_erased_stays_erased(taken_over: LivePlatform) -> None:
    with taken_over.client() as client:
        result = client.post("/v1/similar", json={"text": "A text to be erased.", "k": 100}).json()["results"]
    assert FACTS["erased_text"] not in {each["text_id"] for each in result}
