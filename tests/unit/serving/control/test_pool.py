"""The pool: Ray Serve's states of an application, translated for the reconciler."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import Application
from ray.serve.schema import ApplicationStatus, ReplicaState

from registry.store.records import EncoderRecord
from serving.control.pool import (
    DEPLOYMENT,
    EncoderReplicas,
    EncoderStatus,
    ServePool,
    _state,
    build_run_target,
    find_reason,
)
from serving.core.catalog import short_digest


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("NOT_STARTED", EncoderStatus.STARTING),
        ("DEPLOYING", EncoderStatus.STARTING),
        ("RUNNING", EncoderStatus.RUNNING),
        ("UNHEALTHY", EncoderStatus.RUNNING),
        ("DELETING", EncoderStatus.STOPPING),
        ("DEPLOY_FAILED", EncoderStatus.FAILED),
    ],
)
def test_every_status_of_an_application_is_understood(status: str, expected: EncoderStatus) -> None:
    assert _state(status, "").status is expected


def test_a_failure_gives_the_last_line_of_what_was_raised_as_its_reason() -> None:
    message = (
        "The deployment failed to start:\nTraceback (most recent call last):\n\nMemoryError: too large\n"
    )
    assert _state("DEPLOY_FAILED", message).reason == "MemoryError: too large"


def test_an_application_bears_its_encoders_name_and_no_route() -> None:
    record = EncoderRecord(
        digest="ab" * 32, bundle="b", name="e", space=None, dimensions=4, uri="file:///nowhere"
    )
    result = build_run_target(record, None)  # type: ignore[arg-type]  # it is passed on as it is
    assert (result.name, result.route_prefix) == (f"encoder-{short_digest(record.digest)}", None)


@pytest.mark.anyio
@pytest.mark.parametrize("named", [lambda member: member, lambda member: member.value])
async def test_encoders_are_found_among_applications_with_their_replicas(
    monkeypatch: pytest.MonkeyPatch, named: Callable[[Any], Any]
) -> None:
    running, starting = named(ReplicaState.RUNNING), named(ReplicaState.STARTING)
    states = [running, starting, running]
    applications = {
        f"encoder-{'a' * 16}": {
            "status": named(ApplicationStatus.RUNNING),
            "message": "",
            "deployments": {DEPLOYMENT: {"replicas": [{"state": state} for state in states]}},
        },
        f"encoder-{'b' * 16}": {
            "status": named(ApplicationStatus.DEPLOY_FAILED),
            "message": "it broke\nbadly",
            "deployments": {},
        },
        "shop": {"status": named(ApplicationStatus.RUNNING), "message": "", "deployments": {}},
    }
    client = SimpleNamespace(get_serve_details=lambda: {"applications": applications})
    pool = ServePool(_build_nothing, lambda _: None)
    monkeypatch.setattr("serving.control.pool._get_global_client", lambda **_: client)
    assert await pool.states() == {
        "a" * 16: EncoderReplicas(status=EncoderStatus.RUNNING, replicas={"running": 2, "starting": 1}),
        "b" * 16: EncoderReplicas(status=EncoderStatus.FAILED, reason="badly"),
    }
    monkeypatch.setattr("serving.control.pool._get_global_client", lambda **_: None)
    assert await pool.states() == {}


def _build_nothing(record: EncoderRecord) -> Application:
    raise AssertionError(f"{record.name} isn't to be started")


def _application(**messages: str) -> SimpleNamespace:
    return SimpleNamespace(
        deployments={name: SimpleNamespace(message=message) for name, message in messages.items()}
    )


def test_the_reason_of_a_start_that_fails_is_the_error_of_what_the_ingress_waits_for() -> None:
    failed = "A replica failed to start with exception. Retrying 2 more time(s). Error:\nTraceback:\n  {}\n"
    applications = {
        "shop": _application(shop=failed.format("KeyError: shop")),
        "valence": _application(
            ingress=failed.format("TimeoutError"),
            control=failed.format("Unavailable: no way to postgresql://me:secret@db/v"),
        ),
    }
    assert find_reason(applications) == (
        "the control doesn't start: Unavailable: no way to postgresql://***@db/v"
    )


def test_a_cluster_without_room_is_the_reason() -> None:
    waiting = (
        "Deployment 'encoder' in application 'encoder-0123' has 1 replicas that have taken more than 30s to be "
        "scheduled. This may be due to waiting for the cluster to auto-scale or for a runtime environment to be "
        'installed. Resources required for each replica: {"CPU": 0.5}, total resources available: {"CPU": 0.2}. '
        "Use `ray status` for more details."
    )
    assert find_reason({"valence": _application(encoder=waiting, ingress="")}) == (
        'the encoder doesn\'t start: Ray has no room for it: a replica needs {"CPU": 0.5}, and {"CPU": 0.2} is free: '
        "add nodes, or end what uses them"
    )


def test_no_reason_is_given_while_replicas_merely_start() -> None:
    slow = "Deployment 'ingress' has 1 replicas that have taken more than 30s to initialize."
    assert find_reason({"valence": _application(ingress=slow, control="")}) is None
