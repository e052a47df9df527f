"""Versions change under load: the alias's version answers, a broken one never does, and no request fails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

from registry.bundles.bundle import Bundle
from registry.store.model_registry import CHAMPION, MODEL
from tests.support.clients import Clients
from tests.support.clock import eventually
from tests.support.live import LivePlatform
from tests.support.versions import (
    Weights,
    far_away,
    not_a_number,
    register_version,
    registry_of,
    too_narrow,
    twin_encoder,
    twin_head,
    twin_joint,
    without_a_tensor,
)

CLIENTS = 8


def get_answering_version(platform: LivePlatform, version: str | None = None) -> str:
    """Return the version that answers now, or the state of the named one."""
    with platform.client() as client:
        if version is None:
            answer = client.post("/v1/predict", json={"text": "who is it?"})
            assert answer.status_code == 201, answer.text
            return str(answer.json()["model_version"])
        versions = client.get(f"/v1/models/{MODEL}").json()["versions"]
        return next((str(each["state"]) for each in versions if each["version"] == version), "unseen")


def reason(platform: LivePlatform, version: str) -> str:
    with platform.client() as client:
        versions = client.get(f"/v1/models/{MODEL}").json()["versions"]
        return str(next(each.get("reason", "") for each in versions if each["version"] == version))


def move_alias(platform: LivePlatform, version: str, within: float) -> float:
    """Move the alias, as any MLflow client can; return the seconds until its version answers."""
    registry_of(platform).set_alias(MODEL, CHAMPION, version)
    moved = monotonic()
    eventually(
        lambda: get_answering_version(platform) == version, within=within, what=f"version {version} answers"
    )
    return monotonic() - moved


def test_champions_change_under_load_and_no_request_fails(platform: LivePlatform, tmp_path: Path) -> None:
    before = get_answering_version(platform)
    same = register_version(platform, twin_head(tmp_path / "same", "a twin on the same encoder"))
    digest = twin_encoder(
        registry_of(platform),
        tmp_path / "encoder",
        "a twin of the encoder",
        "a" * 64,
        space="all-MiniLM-L6-v2",
    )
    other = register_version(platform, twin_head(tmp_path / "other", "a twin elsewhere", encoder=digest))
    ready: dict[str, float] = {}
    with Clients(platform, CLIENTS) as clients:
        clients.wait_for(20)
        for version, within in ((same.version, 10), ("1", 10), (other.version, 60), (before, 10)):
            move_alias(platform, version, within)
            ready[version] = monotonic()
            clients.wait_for(20)
    assert not clients.failures
    assert {answer["model_version"] for answer in clients.answers} == {before, *ready}
    assert {answer["arm"] for answer in clients.answers} == {"champion"}


@pytest.mark.parametrize("change", [not_a_number, too_narrow, without_a_tensor])
def test_a_broken_head_never_becomes_the_one_that_answers(
    platform: LivePlatform, tmp_path: Path, change: Callable[[Weights], None]
) -> None:
    before = get_answering_version(platform)
    broken = register_version(platform, twin_head(tmp_path / "broken", change.__name__, change=change))
    with Clients(platform, 2) as clients:
        registry_of(platform).set_alias(MODEL, CHAMPION, broken.version)
        eventually(
            lambda: get_answering_version(platform, broken.version) == "failed",
            within=30,
            what="it is found broken",
        )
        clients.wait_for(20)
    assert not clients.failures
    assert {answer["model_version"] for answer in clients.answers} == {before}
    assert reason(platform, broken.version)
    move_alias(platform, before, 10)


@pytest.mark.parametrize("damage", ["another byte", "no file", "no folder"])
def test_a_damaged_bundle_never_becomes_the_one_that_answers(
    platform: LivePlatform, tmp_path: Path, damage: str
) -> None:
    before = get_answering_version(platform)
    bundle: Bundle = twin_head(tmp_path / "damaged", damage)
    # Damaged before anything has read it: the alias is set together with the damage.
    record = registry_of(platform).register(bundle)
    folder = Path(record.uri.removeprefix("file://"))
    file = folder / "head.safetensors"
    match damage:
        case "another byte":
            file.write_bytes(file.read_bytes()[:-1] + b"\x01")
        case "no file":
            file.unlink()
        case _:
            shutil.rmtree(folder)
    with Clients(platform, 2) as clients:
        registry_of(platform).set_alias(MODEL, CHAMPION, record.version)
        clients.wait_for(20)
    assert not clients.failures
    move_alias(platform, before, 10)


def test_an_encoder_outside_the_space_gets_its_vectors_from_the_spaces_own(
    platform: LivePlatform, tmp_path: Path
) -> None:
    before = get_answering_version(platform)
    digest = twin_encoder(registry_of(platform), tmp_path / "encoder", "foreign", "f" * 64, space=None)
    foreign = register_version(
        platform, twin_head(tmp_path / "foreign", "on a foreign encoder", encoder=digest)
    )
    body = {"text": "The plot is thin but the acting is superb.", "return_embedding": True}
    with platform.client() as client:
        own = client.post("/v1/predict", json=body).json()
        eventually(
            lambda: get_answering_version(platform, foreign.version) == "absent",
            within=10,
            what="its version is seen",
        )
        refused = client.post("/v1/predict", json=body | {"version": foreign.version})
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        eventually(
            lambda: get_answering_version(platform, foreign.version) == "ready",
            within=60,
            what="asking starts its encoder",
        )
        theirs = client.post("/v1/predict", json=body | {"version": foreign.version}).json()
    assert theirs["model_version"] == foreign.version
    assert theirs["embedding"] == pytest.approx(own["embedding"], abs=1e-3)
    assert get_answering_version(platform) == before


# A tiny one is built and refused in tests/integration/registry/training.
@pytest.mark.slow
def test_a_joint_version_whose_vectors_leave_the_space_is_refused(
    platform: LivePlatform, tmp_path: Path
) -> None:
    before = get_answering_version(platform)
    strayed = twin_joint(tmp_path / "strayed", "strayed", change=far_away)
    with Clients(platform, 2) as clients:
        refused = platform.valence("models", "register", str(strayed.path), "--alias", CHAMPION)
        clients.wait_for(20)
    assert refused.returncode == 1
    assert "leaves its space: mean cosine" in refused.stderr
    assert not clients.failures
    assert get_answering_version(platform) == before


def test_a_joint_version_is_registered_with_its_encoder_and_answers(
    platform: LivePlatform, tmp_path: Path
) -> None:
    same = twin_joint(tmp_path / "again", "the champion again")
    done = platform.valence("models", "register", str(same.path), "--json")
    assert done.returncode == 0, done.stderr
    version = str(json.loads(done.stdout)["version"])
    eventually(
        lambda: get_answering_version(platform, version) == "ready", within=30, what="it shares the encoder"
    )


def test_the_control_process_comes_back_and_follows_on(platform: LivePlatform) -> None:
    before = get_answering_version(platform)
    with Clients(platform, 2) as clients:
        (control,) = platform.find_processes("ServeReplica:valence:control")
        control.kill()
        clients.wait_for(20)
        move_alias(platform, "1", 60)
        move_alias(platform, before, 10)
    assert not clients.failures
