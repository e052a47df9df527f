"""The judgement of a cluster: its nodes, its token, and who runs on it already."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from serving.deployments import existing_cluster
from serving.deployments.existing_cluster import ClusterRefused, Mark
from serving.settings import Settings

_HEAD = {"node:__internal_head__": 1.0}
_EMBEDDED = "postgresql://postgres@/valence?host=%2Fhome%2Fann%2Fpostgres"
_ELSEWHERE = "postgresql://db.example.org/valence"
_OURS = Mark(fingerprint="ours", home="/a", host="h", job="01")
_THEIRS = replace(_OURS, fingerprint="theirs", home="/b", host="other")


def _node(address: str, *, head: bool = False, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "NodeManagerAddress": address, "Resources": _HEAD if head else {}}


@pytest.mark.parametrize(
    ("database", "nodes", "settings", "refusal"),
    [
        (_EMBEDDED, [_node("127.0.0.1", head=True), _node("127.0.0.1")], {}, None),
        (
            _EMBEDDED,
            [_node("127.0.0.1", head=True), _node("192.0.2.7")],
            {},
            r"\(192.0.2.7\).*embedded PostgreSQL",
        ),
        ("postgresql://localhost/v", [_node("127.0.0.1", head=True), _node("192.0.2.7")], {}, "DATABASE_URL"),
        (_EMBEDDED, [_node("127.0.0.1", head=True), _node("192.0.2.7", alive=False)], {}, None),
        (_ELSEWHERE, [_node("127.0.0.1", head=True), _node("192.0.2.7")], {}, None),
        (
            _ELSEWHERE,
            [_node("127.0.0.1"), _node("192.0.2.7", head=True)],
            {},
            "head of the cluster is 192.0.2.7",
        ),
        (
            _ELSEWHERE,
            [_node("127.0.0.1"), _node("192.0.2.7", head=True)],
            {"url": "http://192.0.2.7:8000"},
            None,
        ),
    ],
)
def test_nodes_elsewhere_need_a_database_and_a_way_in_that_they_reach(
    database: str, nodes: list[dict[str, Any]], settings: dict[str, Any], refusal: str | None
) -> None:
    configured = Settings(database_url=database, **settings)
    if refusal is None:
        existing_cluster._check_nodes(configured, nodes)
    else:
        with pytest.raises(ClusterRefused, match=refusal):
            existing_cluster._check_nodes(configured, nodes)


@pytest.mark.parametrize("demanded", [True, False])
@pytest.mark.parametrize("wanted", ["optional", "required"])
def test_an_open_cluster_is_joined_with_a_warning_or_refused_by_the_setting(
    demanded: bool, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(existing_cluster, "_demands_token", lambda _address: demanded)
    said: list[str] = []
    settings = Settings(ray_token=wanted)
    if wanted == "required" and not demanded:
        with pytest.raises(ClusterRefused, match="VALENCE_RAY_TOKEN"):
            existing_cluster._check_token(settings, "h:1", said.append)
        return
    existing_cluster._check_token(settings, "h:1", said.append)
    assert [text.split(":")[0] for text in said] == ([] if demanded else ["WARNING"])


@pytest.mark.parametrize(
    ("earlier", "job_runs", "applications", "refusal"),
    [
        (None, False, {}, None),
        (None, False, {"shop": "/shop", "encoder-shop": None}, None),
        (None, False, {"shop": "/"}, "shop answers at /"),
        (None, False, {"valence": "/"}, "valence runs on this cluster"),
        (None, False, {"encoder-" + "a" * 16: None}, "encoder-a+ runs on this cluster"),
        (_OURS, False, {"valence": "/", "encoder-" + "a" * 16: None}, None),
        (_THEIRS, False, {"valence": "/"}, "another platform.* from /b on other"),
        (_THEIRS, True, {}, "another platform"),
        (_THEIRS, False, {}, None),
    ],
)
def test_one_platform_a_cluster_beside_the_applications_of_others(
    earlier: Mark | None,
    job_runs: bool,
    applications: dict[str, str | None],
    refusal: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(existing_cluster, "_is_running", lambda _job: job_runs)
    details = {name: {"route_prefix": prefix} for name, prefix in applications.items()}
    if refusal is None:
        existing_cluster._check_applications(_OURS, earlier, details)
    else:
        with pytest.raises(ClusterRefused, match=refusal):
            existing_cluster._check_applications(_OURS, earlier, details)


def test_a_serve_at_another_address_is_refused_with_the_settings_that_fit() -> None:
    settings = Settings(port=8001)
    existing_cluster._check_address(settings, {"host": "127.0.0.1", "port": 8001})
    existing_cluster._check_address(settings, {"port": 8001})
    existing_cluster._check_address(Settings(port=8000), {})
    with pytest.raises(ClusterRefused, match=r"VALENCE_HOST=0.0.0.0 and VALENCE_PORT=8000"):
        existing_cluster._check_address(settings, {"host": "0.0.0.0", "port": 8000})


def test_a_ray_client_address_is_refused_before_anything_is_joined() -> None:
    with pytest.raises(ClusterRefused, match="Ray client"):
        existing_cluster.join(Settings(ray_address="ray://h:10001"), print)


def test_only_the_processes_of_the_joined_ray_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def process(name: str, *command: str) -> SimpleNamespace:
        return SimpleNamespace(info={"name": name, "cmdline": list(command)})

    ours = [
        process("raylet", "--raylet_socket_name=/r/one"),
        process("gcs_server", "--session-name=session_1"),
    ]
    others = [
        process("raylet", "--raylet_socket_name=/r/one.1"),
        process("gcs_server", "--session-name=session_2"),
    ]
    monkeypatch.setattr(existing_cluster.psutil, "process_iter", lambda _names: iter([*others, *ours]))
    node = SimpleNamespace(raylet_socket_name="/r/one", session_name="session_1")
    monkeypatch.setattr("ray._private.worker.global_worker", SimpleNamespace(node=node))
    assert existing_cluster.find_processes() == ours


@pytest.mark.parametrize("shop", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_leaving_takes_the_application_before_its_encoders_and_serve_only_if_it_is_ours_alone(
    shop: bool, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = "encoder-" + "a" * 16
    applications = dict.fromkeys([encoder, "valence", *(["shop"] if shop else [])])
    done: list[str] = []
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications=applications))
    monkeypatch.setattr("ray.serve.delete", done.append)
    monkeypatch.setattr("ray.serve.shutdown", lambda: done.append("serve"))
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_del", lambda *_, **__: done.append("mark"))
    monkeypatch.setattr(existing_cluster, "_write_mark", lambda mark: done.append(f"mark of {mark.serve}"))
    monkeypatch.setattr(existing_cluster, "_find_serve", lambda: "actor")
    monkeypatch.setattr(existing_cluster, "_build_mark", lambda _settings: _OURS)
    monkeypatch.setattr(
        existing_cluster, "_read_mark", lambda: replace(_OURS, serve="actor" if started else None)
    )
    existing_cluster.leave(Settings())
    if started and not shop:
        assert done == ["serve", "mark"]
    else:
        # The mark says to the next platform how Serve was started, as long as that Serve runs.
        assert done == ["valence", encoder, "mark of actor" if started else "mark"]


def test_another_platforms_applications_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(existing_cluster, "_find_serve", lambda: "actor")
    monkeypatch.setattr(existing_cluster, "_build_mark", lambda _settings: _OURS)
    monkeypatch.setattr(existing_cluster, "_read_mark", lambda: _THEIRS)
    monkeypatch.setattr("ray.serve.delete", lambda _name: pytest.fail("it isn't ours"))
    existing_cluster.leave(Settings())
