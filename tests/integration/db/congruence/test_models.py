"""The history of champions and the evaluations: fakes and PostgreSQL alike."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from db.accounts.audit import AuditFilters
from db.errors import Contested, NotFound, Rejected
from db.experiments.experiments import NewExperiment
from db.models.evaluations import Evaluation, NewEvaluation
from db.models.promotions import (
    Act,
    ChampionPeriod,
    NewPromotion,
    PolicyExperiment,
    Promotion,
    PromotionPhase,
    PromotionState,
)
from tests.support.repositories import Repositories
from tests.support.row_factories import field_names

pytestmark = pytest.mark.anyio

MODEL = "sentiment"


def change(before: str | None, after: str | None, **values: Any) -> NewPromotion:
    fields: dict[str, Any] = {"model": MODEL, "act": Act.PROMOTE, "version_from": before, "version_to": after}
    return NewPromotion(**(fields | values))


def fields(promotion: Promotion | None) -> dict[str, Any]:
    """Return a change without its age, which grows."""
    assert promotion is not None
    return {name: getattr(promotion, name) for name in field_names(Promotion) if name != "age"}


async def record(repositories: Repositories, new: NewPromotion) -> Promotion:
    async with repositories.promotions.lock(new.model) as history:
        promotion: Promotion = await history.record(new)
        return promotion


async def test_a_change_is_intended_then_finished_once(repositories: Repositories) -> None:
    promotions, actor = repositories.promotions, uuid4()
    assert await promotions.state(MODEL) == PromotionState(champion=None, intended=None)
    first = await record(repositories, change(None, "1", act=Act.BOOTSTRAP))
    assert type(first) is Promotion
    assert (first.act, first.state, first.settled_at is None) == ("bootstrap", "done", False)
    new = change("1", "2", actor=actor, gated=True, reason="better", evidence={"a": [1]}, below_id=first.id)
    intended = await promotions.intend(new, after=first.id)
    assert (intended.state, intended.settled_at, intended.below_id) == ("intended", None, first.id)
    assert (intended.actor, intended.reason, intended.evidence) == (actor, "better", {"a": [1]})
    assert (intended.gated, intended.forced) == (True, False)
    state = await promotions.state(MODEL)
    assert (state.version, fields(state.champion)) == ("1", fields(first))
    assert fields(state.intended) == fields(intended)
    with pytest.raises(Contested, match=f"under way: promote from version 1 to 2 by key {actor}"):
        await promotions.intend(change("1", "3"), after=first.id)
    async with promotions.lock(MODEL) as history:
        assert fields((await history.state()).intended) == fields(intended)
        await history.finish(intended, PromotionPhase.DONE)
        with pytest.raises(Contested):
            await history.finish(intended, PromotionPhase.ABANDONED)
    with pytest.raises(Contested, match="came first"):
        await promotions.intend(change("1", "3"), after=first.id)
    lost = await promotions.intend(change("2", "3"), after=intended.id)
    async with promotions.lock(MODEL) as history:
        await history.finish(lost, PromotionPhase.ABANDONED, why="the process died")
    done, abandoned = await promotions.get(intended.id), await promotions.get(lost.id)
    assert (done.state, abandoned.state) == ("done", "abandoned")
    assert done.settled_at is not None
    assert abandoned.settled_at is not None
    assert done.at <= done.settled_at <= abandoned.settled_at
    assert 0 <= done.age < 600
    state = await promotions.state(MODEL)
    assert (state.version, state.intended) == ("2", None)
    for unknown in (0, -1, lost.id + 100):
        with pytest.raises(NotFound):
            await promotions.get(unknown)
    await promotions.record_refusal(MODEL, "9", actor=actor, why="a gate failed", evidence={"b": 2})
    entries = (await repositories.audit.list(AuditFilters(subject=MODEL))).items
    assert [(each.action, each.actor) for each in entries] == [
        ("champion.refuse", actor),
        ("champion.abandon", None),
        ("champion.promote", actor),
        ("champion.bootstrap", None),
    ]
    assert entries[0].detail == {"to": "9", "why": "a gate failed", "evidence": {"b": 2}}
    assert entries[1].detail["why"] == "the process died"
    assert entries[2].detail == {
        "promotion": intended.id,
        "from": "1",
        "to": "2",
        "forced": False,
        "gated": True,
        "reason": "better",
        "evidence": {"a": [1]},
    }


async def test_the_age_of_a_change_is_a_float(repositories: Repositories) -> None:
    assert type((await record(repositories, change(None, "1"))).age) is float


async def test_the_lock_is_a_models_and_undoes_what_failed(repositories: Repositories) -> None:
    promotions = repositories.promotions
    await record(repositories, change(None, "1"))

    async def fail() -> None:
        async with promotions.lock(MODEL) as history:
            await history.record(change("1", "2"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (await promotions.state(MODEL)).version == "1"
    assert len((await repositories.audit.list()).items) == 1
    async with promotions.lock(MODEL) as history:
        async with promotions.try_lock(MODEL) as second:
            assert second is None
        async with promotions.try_lock("other") as other:
            assert await other.state() == PromotionState(champion=None, intended=None)
        waiting = asyncio.create_task(promotions.intend(change("1", "3"), after=None))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await history.record(change("1", "2"))
    with pytest.raises(Contested):
        await waiting
    async with promotions.try_lock(MODEL) as free:
        assert (await free.state()).version == "2"


async def test_the_history_is_told_in_pages_and_by_moment(repositories: Repositories) -> None:
    promotions = repositories.promotions
    start = datetime.now(UTC) - timedelta(minutes=1)
    changes = []
    for before, after in ((None, "1"), ("1", "2"), ("2", None), (None, "1"), ("1", "3")):
        changes.append(await record(repositories, change(before, after)))
        await record(repositories, change(before, after, model="other"))
    await promotions.intend(change("3", "4"), after=changes[-1].id)
    page = await promotions.history(MODEL)
    assert [fields(each.promotion) for each in page.items] == [fields(each) for each in changes[::-1]]
    assert [each.until for each in page.items] == [None, *(each.at for each in changes[:0:-1])]
    assert page.next_cursor is None
    first = await promotions.history(MODEL, limit=3)
    rest = await promotions.history(MODEL, limit=2, cursor=first.next_cursor)
    assert [each.promotion.id for each in (*first.items, *rest.items)] == [each.id for each in changes[::-1]]
    assert [each.until for each in (*first.items, *rest.items)] == [each.until for each in page.items]
    assert rest.next_cursor is None
    assert (await promotions.history("unknown")).items == ()
    for cursor in ("x", "", "-3"):
        with pytest.raises(Rejected):
            await promotions.history(MODEL, cursor=cursor)
    assert await promotions.champion_at(MODEL, start) is None
    assert await promotions.champion_at("unknown", datetime.now(UTC)) is None
    moments = [datetime.now(UTC) + timedelta(minutes=1), *(each.at for each in changes[::-1])]
    for moment, period in zip(moments, (page.items[0], *page.items), strict=True):
        found = await promotions.champion_at(MODEL, moment)
        assert type(found) is ChampionPeriod
        assert (fields(found.promotion), found.until) == (fields(period.promotion), period.until)


def evaluation(version: str, data: str = "d") -> NewEvaluation:
    return NewEvaluation(bundle_digest=version * 64, data_digest=data * 64, model=MODEL, version=version)


async def test_evaluations_run_one_by_one_and_end_once(repositories: Repositories) -> None:
    evaluations, actor = repositories.evaluations, uuid4()
    assert await evaluations.claim() is None
    first = await evaluations.request(
        NewEvaluation(
            bundle_digest="1" * 64, data_digest="d" * 64, model=MODEL, version="1", requested_by=actor
        )
    )
    assert type(first) is Evaluation
    assert (first.state, first.attempts, first.requested_by) == ("running", 0, actor)
    assert (first.report, first.reason, first.seen_at, first.finished_at) == (None,) * 4
    assert await evaluations.request(evaluation("1")) == first
    other = await evaluations.request(evaluation("1", data="e"))
    second = await evaluations.request(evaluation("2"))
    assert first.id < other.id < second.id
    claimed = await evaluations.claim()
    assert claimed is not None
    assert (claimed.id, claimed.attempts, claimed.state) == (first.id, 1, "running")
    assert claimed.seen_at is not None
    assert await evaluations.claim() is None
    assert await evaluations.find_report("1" * 64, "d" * 64) is None
    assert await evaluations.finish(first.id, {"accuracy": 0.5, "labels": [1, None]})
    assert not await evaluations.finish(first.id, {})
    assert not await evaluations.fail(first.id, "late")
    assert not await evaluations.finish(second.id + 100, {})
    claimed = await evaluations.claim()
    assert claimed is not None
    assert claimed.id == other.id
    assert await evaluations.fail(other.id, "it crashed")
    done = await evaluations.find_report("1" * 64, "d" * 64)
    assert done is not None
    assert (done.state, done.report, done.reason) == ("done", {"accuracy": 0.5, "labels": [1, None]}, None)
    assert done.finished_at is not None
    assert await evaluations.find_report("1" * 64, "e" * 64) is None
    assert await evaluations.find_report("2" * 64, "d" * 64) is None
    again = await evaluations.request(evaluation("1"))
    assert again.id > second.id
    assert await evaluations.find_report("1" * 64, "d" * 64) == done
    assert await evaluations.finish(again.id, {"accuracy": 0.75})
    latest = await evaluations.find_report("1" * 64, "d" * 64)
    assert latest is not None
    assert latest.id == again.id
    rows = await evaluations.list_of_bundle("1" * 64)
    assert [(row.id, row.state, row.reason) for row in rows] == [
        (again.id, "done", None),
        (other.id, "failed", "it crashed"),
        (first.id, "done", None),
    ]
    assert await evaluations.list_of_bundle("1" * 64, limit=1) == rows[:1]
    assert await evaluations.list_of_bundle("9" * 64) == ()
    entries = (await repositories.audit.list(AuditFilters(action="evaluation.request"))).items
    assert [(each.subject, each.actor, each.detail["evaluation"]) for each in entries] == [
        (MODEL, None, again.id),
        (MODEL, None, second.id),
        (MODEL, None, other.id),
        (MODEL, actor, first.id),
    ]
    assert entries[-1].detail == {"evaluation": first.id, "version": "1", "bundle": "1" * 64}


async def test_a_policy_promotes_once_and_only_while_its_experiment_runs_under_it(
    repositories: Repositories,
) -> None:
    promotions, experiments = repositories.promotions, repositories.experiments
    policy = {"action": "decide"}
    running = await experiments.create(
        NewExperiment(
            model=MODEL, champion="1", challenger="2", share=0.5, shadow=False, salt="s", policy=policy
        ),
        actor=None,
    )
    deciding = PolicyExperiment(id=running.id, policy=policy)
    async with promotions.lock(MODEL) as history:
        await history.confirm()
        await history.require_experiment(deciding)
        with pytest.raises(Contested, match="was stopped"):
            await history.require_experiment(PolicyExperiment(id=uuid4(), policy=policy))
    assert await promotions.of_experiment(running.id) is None
    evidence = {"experiment": str(running.id)}
    made = await record(repositories, change("1", "2", act=Act.POLICY, evidence=evidence))
    await record(repositories, change("2", "1", act=Act.ROLLBACK, evidence=evidence))
    assert fields(await promotions.of_experiment(running.id)) == fields(made)
    await experiments.change(running.id, actor=None, policy={"action": "observe"})
    async with promotions.lock(MODEL) as history:
        with pytest.raises(Contested, match="another policy"):
            await history.require_experiment(deciding)
    await experiments.stop(running.id, actor=None, reason="enough")
    async with promotions.lock(MODEL) as history:
        with pytest.raises(Contested, match="was stopped"):
            await history.require_experiment(PolicyExperiment(id=running.id, policy={"action": "observe"}))
