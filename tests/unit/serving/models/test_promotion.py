"""Promotions over fakes: gates, force, rollback, races, and deaths at every point."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.experiments.experiments import Experiment, NewExperiment
from db.models.evaluations import NewEvaluation
from db.models.promotions import Act, PolicyExperiment
from registry.errors import RegistryUnavailable
from registry.evaluation.gates import Gates
from registry.evaluation.report import EvaluationReport
from serving.core.caller import Caller, Role
from serving.errors import Conflict, Invalid, NotFound, NotReady, Refused
from serving.models.promotion import PromotionDecision, PromotionService
from tests.fakes.experiments import FakeExperimentRepository
from tests.fakes.models import FakeEvaluationRepository, FakePromotionRepository
from tests.fakes.registry import FakeModelRegistry
from tests.fakes.store import FakeStore
from tests.support.app import MODEL, catalog
from tests.support.reports import report

pytestmark = pytest.mark.anyio

ADA, BOB = (Caller(key_id=(key := uuid4()), holder_id=key, role=Role.ENGINEER) for _ in range(2))


@dataclass(kw_only=True)
class Desk:
    """Promotions over fakes; versions 1 to 4 of the catalog of `tests.support.app`, 2 is champion."""

    registry: FakeModelRegistry
    records: FakePromotionRepository
    evaluations: FakeEvaluationRepository
    experiments: dict[UUID, Experiment]

    def promotions(self, *, grace: float = 0.0, gates: Gates | None = None) -> PromotionService:
        """Return the promotion service of another process."""
        return PromotionService(
            promotions=self.records,
            evaluations=self.evaluations,
            registry=self.registry,
            catalog=catalog,
            gates=gates,
            grace_seconds=grace,
        )

    async def report(self, made: EvaluationReport) -> None:
        result = await self.evaluations.request(
            NewEvaluation(bundle_digest=made.bundle, data_digest=made.data, model=MODEL, version=made.version)
        )
        await self.evaluations.finish(result.id, made.dump())

    @property
    def refusals(self) -> list[tuple[str, UUID | None]]:
        audit = self.records.store.audit
        return [(entry.detail["to"], entry.actor) for entry in audit if entry.action == "champion.refuse"]

    @property
    def acts(self) -> list[tuple[str, str | None, str]]:
        return [(row.act, row.version_to, row.state) for row in self.records.rows]


@pytest.fixture
async def desk() -> Desk:
    entries = catalog().models[MODEL]
    experiments = FakeExperimentRepository(FakeStore())
    desk = Desk(
        experiments=experiments.experiments,
        registry=FakeModelRegistry(
            {version: entry.record for version, entry in entries.items()}, champion="2"
        ),
        records=FakePromotionRepository(FakeStore(), experiments.experiments),
        evaluations=FakeEvaluationRepository(FakeStore()),
    )
    await desk.report(report("2", 0.75))
    return desk


async def deciding(desk: Desk) -> PromotionDecision:
    """Return the decision of the policy of a running experiment to promote version 3, which passes its gates."""
    await desk.report(report("3", 0.78))
    policy = {"action": "decide"}
    new = NewExperiment(
        model=MODEL, champion="2", challenger="3", share=0.5, shadow=False, salt="s", policy=policy
    )
    running = await FakeExperimentRepository(FakeStore()).create(new, actor=None)
    desk.experiments[running.id] = running
    return PromotionDecision(
        act=Act.POLICY,
        evidence={"experiment": str(running.id)},
        experiment=PolicyExperiment(id=running.id, policy=policy),
    )


async def test_a_version_that_passes_becomes_champion_once(desk: Desk) -> None:
    await desk.report(report("3", 0.78))
    promotions = desk.promotions()
    first = await promotions.promote(MODEL, "3", ADA, reason="better")
    again = await promotions.promote(MODEL, "3", BOB)
    assert (first.changed, first.version_from, again.changed) == (True, "2", False)
    assert desk.registry.champion == "3"
    assert desk.acts == [("bootstrap", "2", "done"), ("promote", "3", "done")]
    result = first.promotion
    assert result is not None
    assert (result.actor, result.reason, result.gated, result.forced) == (ADA.key_id, "better", True, False)
    assert result.evidence["gates"]["passed"]


async def test_a_failed_gate_is_a_refusal_with_the_report_and_is_noted(desk: Desk) -> None:
    await desk.report(report("1", 0.6))
    with pytest.raises(Refused, match="a gate failed") as refused:
        await desk.promotions().promote(MODEL, "1", ADA)
    assert refused.value.report is not None
    assert not refused.value.report["passed"]
    assert desk.registry.champion == "2"
    assert desk.refusals == [("1", ADA.key_id)]


async def test_force_passes_over_a_failed_gate_for_a_reason(desk: Desk) -> None:
    await desk.report(report("1", 0.6))
    with pytest.raises(Invalid, match="needs a reason"):
        await desk.promotions().promote(MODEL, "1", ADA, force=True, reason=" ")
    done = await desk.promotions().promote(MODEL, "1", ADA, force=True, reason="an incident")
    assert done.promotion is not None
    assert (done.promotion.forced, done.promotion.gated) == (True, False)
    assert not done.promotion.evidence["gates"]["passed"]
    assert desk.registry.champion == "1"


@pytest.mark.parametrize(
    ("state", "why"),
    [("none", "never evaluated"), ("running", "its evaluation runs"), ("failed", "head raises")],
)
async def test_without_a_report_it_says_evaluation_missing_and_why(desk: Desk, state: str, why: str) -> None:
    if state != "none":
        wanted = NewEvaluation(bundle_digest="3" * 64, data_digest="d" * 64, model=MODEL, version="3")
        result = await desk.evaluations.request(wanted)
        if state == "failed":
            await desk.evaluations.fail(result.id, "head raises")
    with pytest.raises(Refused, match="evaluation missing") as refused:
        await desk.promotions().promote(MODEL, "3", ADA)
    assert refused.value.report is not None
    assert why in refused.value.report["missing"]["3"]


async def test_a_report_on_another_held_out_set_does_not_count(desk: Desk) -> None:
    await desk.report(report("3", 0.9, data="0" * 64))
    with pytest.raises(Refused, match="evaluation missing: version 3"):
        await desk.promotions().promote(MODEL, "3", ADA)
    desk.registry.data = None
    with pytest.raises(Refused, match="no held-out set"):
        await desk.promotions().promote(MODEL, "3", ADA)


async def test_a_version_that_cant_be_loaded_is_refused_even_by_force(desk: Desk) -> None:
    await desk.report(report("4", 0.99))
    with pytest.raises(Refused, match="the head's digest is wrong"):
        await desk.promotions().promote(MODEL, "4", ADA, force=True, reason="I want it")
    assert desk.registry.champion == "2"
    assert len(desk.refusals) == 1


async def test_what_is_not_there_is_not_found(desk: Desk) -> None:
    for attempt in (
        desk.promotions().promote(MODEL, "9", ADA),
        desk.promotions().promote("other", "1", ADA),
        desk.promotions().rollback("other", ADA),
        desk.promotions().history("other"),
        desk.promotions().version(MODEL, "9"),
    ):
        with pytest.raises(NotFound):
            await attempt


async def force(desk: Desk, *versions: str) -> None:
    for version in versions:
        await desk.promotions().promote(MODEL, version, ADA, force=True, reason="a test")


async def test_rollbacks_go_down_a_stack_and_never_forward_again(desk: Desk) -> None:
    await force(desk, "1", "3")
    promotions = desk.promotions()
    first = await promotions.rollback(MODEL, ADA, reason="worse")
    second = await promotions.rollback(MODEL, ADA)
    assert [first.version, second.version, desk.registry.champion] == ["1", "2", "2"]
    with pytest.raises(Refused, match="no version was champion"):
        await promotions.rollback(MODEL, ADA)
    await force(desk, "3")
    assert (await promotions.rollback(MODEL, ADA)).version == "2"


async def test_a_rollback_to_a_version_that_is_gone_is_refused(desk: Desk) -> None:
    await force(desk, "1", "3")
    del desk.registry.versions["1"]
    with pytest.raises(Refused, match="version 1 isn't registered any more"):
        await desk.promotions().rollback(MODEL, ADA)
    assert desk.registry.champion == "3"


async def test_a_move_by_another_client_is_laid_on_the_stack_ungated(desk: Desk) -> None:
    await force(desk, "1")
    desk.registry.champion = "3"
    await desk.promotions().reconcile(MODEL, "3")
    row = desk.records.rows[-1]
    assert (row.act, row.version_from, row.version_to, row.gated) == ("external", "1", "3", False)
    assert (await desk.promotions().rollback(MODEL, ADA)).version == "1"


async def test_an_alias_that_vanishes_and_comes_back_is_followed(desk: Desk) -> None:
    await desk.promotions().reconcile(MODEL, "2")
    desk.registry.champion = None
    await desk.promotions().reconcile(MODEL, None)
    assert desk.acts == [("bootstrap", "2", "done"), ("external", None, "done")]
    await desk.report(report("3", 0.1))
    assert (await desk.promotions().promote(MODEL, "3", ADA)).version_from is None
    # A rollback never leaves a model without a champion.
    assert (await desk.promotions().rollback(MODEL, ADA)).version == "2"


async def test_two_reconcilers_record_one_move_once(desk: Desk) -> None:
    await desk.promotions().reconcile(MODEL, "2")
    desk.registry.champion = "1"
    await asyncio.gather(*(desk.promotions().reconcile(MODEL, "1") for _ in range(5)))
    await desk.promotions().reconcile(MODEL, "1")
    assert desk.acts == [("bootstrap", "2", "done"), ("external", "1", "done")]


async def test_a_stale_look_at_the_alias_records_nothing(desk: Desk) -> None:
    await force(desk, "1")
    await desk.promotions().reconcile(MODEL, "2")
    assert desk.acts[1:] == [("promote", "1", "done")]


class Died(BaseException):
    """The end of a process: none of its code runs any more."""


async def test_a_death_before_the_alias_moved_is_abandoned(desk: Desk) -> None:
    def die() -> None:
        raise Died

    desk.registry.before = die
    with pytest.raises(Died):
        await force(desk, "1")
    assert desk.acts[1:] == [("promote", "1", "intended")]
    await desk.promotions(grace=60).reconcile(MODEL, "2")
    assert desk.acts[1:] == [("promote", "1", "intended")]
    for _ in range(2):
        await desk.promotions().reconcile(MODEL, "2")
    assert desk.acts[1:] == [("promote", "1", "abandoned")]
    assert desk.registry.champion == "2"


async def test_a_death_after_the_alias_moved_is_done_not_doubled(desk: Desk) -> None:
    def die() -> None:
        raise Died

    desk.registry.after = die
    with pytest.raises(Died):
        await force(desk, "1")
    await asyncio.gather(*(desk.promotions(grace=60).reconcile(MODEL, "1") for _ in range(3)))
    assert desk.acts[1:] == [("promote", "1", "done")]
    assert desk.records.rows[-1].actor == ADA.key_id


async def test_a_death_and_then_a_move_elsewhere_are_two_changes(desk: Desk) -> None:
    def die() -> None:
        raise Died

    desk.registry.before = die
    with pytest.raises(Died):
        await force(desk, "1")
    desk.registry.champion = "3"
    await desk.promotions().reconcile(MODEL, "3")
    assert desk.acts[1:] == [("promote", "1", "abandoned"), ("external", "3", "done")]


async def test_a_registry_that_fails_is_503_and_what_it_did_is_found_out(desk: Desk) -> None:
    def fail() -> None:
        raise RegistryUnavailable("MLflow can't answer")

    desk.registry.before = fail
    with pytest.raises(NotReady):
        await force(desk, "1")
    desk.registry.before = lambda: None
    assert (await desk.promotions().promote(MODEL, "1", ADA, force=True, reason="again")).changed
    assert desk.acts[1:] == [("promote", "1", "abandoned"), ("promote", "1", "done")]


async def test_a_move_whose_answer_is_missing_is_looked_up(desk: Desk) -> None:
    def fail() -> None:
        raise RegistryUnavailable("MLflow can't answer")

    desk.registry.after = fail
    assert (await desk.promotions().promote(MODEL, "1", ADA, force=True, reason="a test")).changed
    assert desk.acts[1:] == [("promote", "1", "done")]


async def test_a_policy_promotes_once_even_if_somebody_rolls_back_before_it_is_noted(desk: Desk) -> None:
    decision = await deciding(desk)
    assert (await desk.promotions().decide(MODEL, "3", decision)).changed
    await desk.promotions().rollback(MODEL, BOB)
    again = await desk.promotions().decide(MODEL, "3", decision)
    assert (again.changed, desk.registry.champion) == (False, "2")
    assert [act for act, _, _ in desk.acts] == ["bootstrap", "policy", "rollback"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"state": "stopped"}, "was stopped"), ({"policy": {"action": "observe"}}, "another policy")],
)
async def test_a_policy_promotes_nothing_once_a_person_has_stopped_or_changed_it(
    desk: Desk, changes: dict[str, Any], why: str
) -> None:
    decision = await deciding(desk)
    assert decision.experiment is not None
    seen = desk.experiments[decision.experiment.id]
    desk.experiments[seen.id] = replace(seen, **changes)
    with pytest.raises(Conflict, match=why):
        await desk.promotions().decide(MODEL, "3", decision)
    assert desk.registry.champion == "2"
    assert desk.acts == [("bootstrap", "2", "done"), ("policy", "3", "abandoned")]


async def test_of_two_at_once_one_wins_and_the_other_gets_a_conflict(desk: Desk) -> None:
    promotions = desk.promotions(grace=60)
    results = await asyncio.gather(
        *(promotions.promote(MODEL, version, ADA, force=True, reason="a test") for version in ("1", "3")),
        return_exceptions=True,
    )
    (outcome,) = [result for result in results if isinstance(result, Exception)]
    assert isinstance(outcome, Conflict)
    assert str(ADA.key_id) in str(outcome)
    assert [act for act, _, state in desk.acts if state == "done"] == ["bootstrap", "promote"]


async def test_during_a_change_others_learn_whose_it_is(desk: Desk) -> None:
    moving, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        loop.call_soon_threadsafe(moving.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)

    desk.registry.before = wait
    first = asyncio.create_task(desk.promotions().promote(MODEL, "1", ADA, force=True, reason="a test"))
    await moving.wait()
    desk.registry.before = lambda: None
    with pytest.raises(Conflict, match=f"under way: promote from version 2 to 1 by key {ADA.key_id}"):
        await desk.promotions().promote(MODEL, "3", BOB, force=True, reason="a test")
    # A reconciler doesn't stop a live champion, either.
    await desk.promotions().reconcile(MODEL, "2")
    go.set()
    assert (await first).changed


async def test_a_change_is_carried_out_even_if_its_caller_leaves(desk: Desk) -> None:
    moving, go = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        loop.call_soon_threadsafe(moving.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)

    desk.registry.before = wait
    promotions = desk.promotions()
    first = asyncio.create_task(promotions.promote(MODEL, "1", ADA, force=True, reason="a test"))
    await moving.wait()
    first.cancel()
    go.set()
    await asyncio.gather(*promotions._changes)
    assert desk.acts[1:] == [("promote", "1", "done")]


async def test_a_champion_that_changes_between_decision_and_move_is_a_conflict(desk: Desk) -> None:
    promotions = desk.promotions()
    await promotions.reconcile(MODEL, "2")
    intend = desk.records.intend

    async def overtaken(*arguments: object, **named: object) -> object:
        result = await intend(*arguments, **named)  # type: ignore[arg-type]
        desk.registry.champion = "3"
        return result

    desk.records.intend = overtaken  # type: ignore[method-assign,assignment]
    with pytest.raises(Conflict, match="another MLflow client made version 3 champion"):
        await promotions.promote(MODEL, "1", ADA, force=True, reason="a test")
    assert desk.registry.champion == "3"
    assert desk.acts[1:] == [("promote", "1", "abandoned"), ("external", "3", "done")]


async def test_a_policy_promotes_with_its_decision_as_evidence(desk: Desk) -> None:
    await desk.report(report("3", 0.78))
    decision = PromotionDecision(act=Act.POLICY, reason="won", evidence={"experiment": "x", "feedback": 4000})
    done = await desk.promotions().decide(MODEL, "3", decision)
    assert done.promotion is not None
    assert (done.promotion.act, done.promotion.actor) == ("policy", None)
    assert done.promotion.evidence["feedback"] == 4000


async def test_a_version_is_shown_with_what_the_gates_would_say(desk: Desk) -> None:
    await desk.report(report("1", 0.6))
    shown = await desk.promotions().version(MODEL, "1")
    assert not shown.preview.passed
    assert shown.evaluations[0].state == "done"
    assert (await desk.promotions(gates=Gates(accuracy_difference=None)).version(MODEL, "1")).preview.passed
