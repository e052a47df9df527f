"""Experiments, their decisions and stages: fakes and PostgreSQL alike."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from db.accounts.audit import AuditFilters
from db.errors import Conflict, Duplicate, NotFound, Rejected
from db.experiments.counts import ArmStageCounts, ExperimentStage
from db.experiments.experiments import Decision, Experiment, NewDecision, NewExperiment
from tests.support.repositories import Repositories
from tests.support.row_factories import field_names

pytestmark = pytest.mark.anyio

NEW = NewExperiment(
    model="sentiment",
    champion="2",
    challenger="1",
    share=0.5,
    shadow=False,
    salt="s",
    policy={"a": [1, None]},
)
RAMP = NewDecision(
    action="ramp",
    verdict="better",
    reason="enough units",
    share=0.25,
    evidence={"units": 3},
    policy={},
    numbers={"p": 0.5},
)


async def test_one_experiment_of_a_model_runs(repositories: Repositories) -> None:
    experiments = repositories.experiments
    created = await experiments.create(NEW, actor=None)
    assert type(created) is Experiment
    assert (created.model, created.champion, created.challenger) == ("sentiment", "2", "1")
    assert (created.share, created.shadow, created.salt, created.policy) == (
        0.5,
        False,
        "s",
        {"a": [1, None]},
    )
    assert (created.stage, created.state, created.reason, created.running) == (1, "running", None, True)
    assert (created.stopped_at, created.updated_at) == (None, created.created_at)
    with pytest.raises(Duplicate):
        await experiments.create(replace(NEW, challenger="3"), actor=None)
    with pytest.raises(Rejected):
        await experiments.create(replace(NEW, model="other", share=1.5), actor=None)
    other = await experiments.create(replace(NEW, model="other", shadow=True), actor=None)
    stopped = await experiments.stop(created.id, actor=None, reason="over")
    third = await experiments.create(NEW, actor=None)
    assert await experiments.list() == (third, other, stopped)
    assert await experiments.list(running=True) == (third, other)
    assert await experiments.list(limit=1) == (third,)
    assert await experiments.get(created.id) == stopped
    with pytest.raises(NotFound):
        await experiments.get(uuid4())


async def test_a_change_of_the_share_begins_a_stage(repositories: Repositories) -> None:
    experiments, actor = repositories.experiments, uuid4()
    created = await experiments.create(NEW, actor=actor)
    change: Any = experiments.change
    assert await change(created.id, actor=actor) == created
    same = await change(created.id, actor=actor, share=0.5, policy={"a": [1, None]}, decision=RAMP)
    assert same == created
    assert await experiments.decisions(created.id) == ()
    policy = await change(created.id, actor=actor, policy={})
    assert (policy.policy, policy.stage, policy.share) == ({}, 1, 0.5)
    assert policy.updated_at > created.updated_at
    ramped = await change(created.id, actor=None, share=0.25, decision=RAMP, seen=policy)
    assert (ramped.share, ramped.stage, ramped.policy) == (0.25, 2, {})
    assert await experiments.get(created.id) == ramped
    with pytest.raises(Conflict):
        await change(created.id, actor=None, share=0.75, seen=policy)
    with pytest.raises(Conflict):
        await change(created.id, actor=None, share=0.75, seen=replace(ramped, policy={"action": "decide"}))
    with pytest.raises(Conflict):
        await experiments.stop(created.id, actor=None, reason="worse", decision=RAMP, seen=policy)
    with pytest.raises(NotFound):
        await change(uuid4(), actor=None, share=0.75)
    counts = await repositories.counts.counts(created.id)
    assert list(counts.stages) == [
        ExperimentStage(number=1, share=0.5),
        ExperimentStage(number=2, share=0.25),
    ]
    assert list(counts.arms) == []
    assert counts.of(2, "champion") == ArmStageCounts(stage=2, arm="champion")
    assert list((await repositories.counts.counts(uuid4())).stages) == []
    entries = (await repositories.audit.list(AuditFilters(subject=str(created.id)))).items
    assert [(each.action, each.actor, each.detail) for each in entries] == [
        ("experiment.change", None, {"model": "sentiment", "share": 0.25}),
        ("experiment.change", actor, {"model": "sentiment", "policy": {}}),
        (
            "experiment.create",
            actor,
            {"model": "sentiment", "challenger": "1", "champion": "2", "share": 0.5, "shadow": False},
        ),
    ]


async def test_a_stopped_experiment_never_changes(repositories: Repositories) -> None:
    experiments = repositories.experiments
    created = await experiments.create(NEW, actor=None)
    stop = replace(RAMP, action="stop", share=None)
    stopped = await experiments.stop(created.id, actor=None, reason="worse", decision=stop)
    assert (stopped.state, stopped.reason, stopped.running) == ("stopped", "worse", False)
    assert stopped.stopped_at == stopped.updated_at > created.updated_at
    assert await experiments.stop(created.id, actor=None, reason="again", decision=stop) == stopped
    assert len(await experiments.decisions(created.id)) == 1
    with pytest.raises(Conflict):
        await experiments.change(created.id, actor=None, share=0.25)
    with pytest.raises(Conflict):
        await experiments.decide(created, RAMP)
    with pytest.raises(NotFound):
        await experiments.stop(uuid4(), actor=None, reason="unknown")
    entries = (await repositories.audit.list(AuditFilters(action="experiment.stop"))).items
    assert [each.detail for each in entries] == [{"model": "sentiment", "reason": "worse"}]


async def test_each_action_is_decided_once(repositories: Repositories) -> None:
    experiments = repositories.experiments
    created = await experiments.create(NEW, actor=None)
    promote = replace(RAMP, action="promote", share=None)
    await experiments.decide(created, promote)
    with pytest.raises(Conflict):
        await experiments.decide(created, promote)
    with pytest.raises(Conflict):
        await experiments.decide(replace(created, stage=2), RAMP)
    with pytest.raises(Conflict):
        await experiments.decide(replace(created, policy={"action": "observe"}), RAMP)
    with pytest.raises(NotFound):
        await experiments.decide(replace(created, id=uuid4()), RAMP)
    await experiments.change(created.id, actor=None, share=0.25, decision=RAMP)
    first, second = await experiments.decisions(created.id)
    assert type(first) is Decision
    assert first.id < second.id
    assert first.at <= second.at
    for decision, new in ((first, promote), (second, RAMP)):
        assert {name: getattr(decision, name) for name in field_names(NewDecision)} == {
            name: getattr(new, name) for name in field_names(NewDecision)
        }
    assert await experiments.decisions(uuid4()) == ()
