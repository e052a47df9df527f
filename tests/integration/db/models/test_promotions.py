"""The history of champions in a real database: one change at a time, finished once, never rewritten."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from db.accounts.audit import AuditFilters, AuditRepository
from db.connection.engine import Database
from db.errors import Contested, NotFound, Rejected
from db.models.promotions import Act, NewPromotion, Promotion, PromotionPhase, PromotionRepository
from tests.support.row_factories import now, run_sql

pytestmark = pytest.mark.anyio

MODEL = "sentiment"


def new_change(old: str | None, new: str | None, act: Act = Act.PROMOTE, **more: object) -> NewPromotion:
    return NewPromotion(model=MODEL, version_from=old, version_to=new, act=act, **more)  # type: ignore[arg-type]


async def record_change(history: PromotionRepository, new: NewPromotion) -> Promotion:
    """Record a change that happened."""
    async with history.lock(new.model) as held:
        return await held.record(new)


async def test_a_change_is_intended_then_done_and_audited(database: Database) -> None:
    history, actor = PromotionRepository(database), uuid4()
    first = await record_change(history, new_change(None, "1", Act.BOOTSTRAP))
    wanted = new_change(
        "1", "2", actor=actor, gated=True, reason="better", evidence={"a": 1}, below_id=first.id
    )
    intended = await history.intend(wanted, after=first.id)
    standing = await history.state(MODEL)
    assert (standing.version, standing.intended and standing.intended.id) == ("1", intended.id)
    async with history.lock(MODEL) as held:
        await held.finish(intended, PromotionPhase.DONE)
        with pytest.raises(Contested):
            await held.finish(intended, PromotionPhase.ABANDONED)
    standing = await history.state(MODEL)
    assert (standing.version, standing.intended) == ("2", None)
    result = await history.get(intended.id)
    assert result.settled_at is not None
    assert (result.actor, result.reason, result.evidence, result.below_id) == (
        actor,
        "better",
        {"a": 1},
        first.id,
    )
    entries = (await AuditRepository(database).list(AuditFilters(subject=MODEL))).items
    assert [(entry.action, entry.actor) for entry in entries] == [
        ("champion.promote", actor),
        ("champion.bootstrap", None),
    ]
    assert entries[0].detail["evidence"] == {"a": 1}
    with pytest.raises(NotFound):
        await history.get(0)


async def test_what_is_abandoned_was_never_champion(database: Database) -> None:
    history = PromotionRepository(database)
    intended = await history.intend(new_change(None, "1"), after=None)
    async with history.lock(MODEL) as held:
        await held.finish(intended, PromotionPhase.ABANDONED, why="died")
    assert (await history.state(MODEL)).champion is None
    assert await history.champion_at(MODEL, now()) is None
    assert (await history.history(MODEL)).items == ()
    (entry,) = (await AuditRepository(database).list(AuditFilters(subject=MODEL))).items
    assert (entry.action, entry.detail["why"]) == ("champion.abandon", "died")


async def test_a_second_intention_names_the_first(database: Database) -> None:
    history, actor = PromotionRepository(database), uuid4()
    await history.intend(new_change(None, "1", actor=actor), after=None)
    with pytest.raises(Contested, match=f"under way: promote from version None to 1 by key {actor}"):
        await history.intend(new_change(None, "2"), after=None)
    elsewhere = NewPromotion(model="other", version_from=None, version_to="1", act=Act.PROMOTE)
    assert (await history.intend(elsewhere, after=None)).state == PromotionPhase.INTENDED


async def test_a_decision_on_an_outdated_state_names_what_came_first(database: Database) -> None:
    history = PromotionRepository(database)
    first = await record_change(history, new_change(None, "1"))
    await record_change(history, new_change("1", "2"))
    with pytest.raises(Contested, match="came first: promote from version 1 to 2"):
        await history.intend(new_change("1", "3"), after=first.id)


async def test_of_many_at_once_one_is_intended(database: Database) -> None:
    history = PromotionRepository(database)
    wanted = [history.intend(new_change(None, str(number)), after=None) for number in range(8)]
    results = await asyncio.gather(*wanted, return_exceptions=True)
    assert len([result for result in results if isinstance(result, Promotion)]) == 1
    assert {type(result) for result in results} == {Promotion, Contested}


async def test_the_lock_is_held_by_one_goes_with_its_transaction_and_is_a_models(database: Database) -> None:
    history = PromotionRepository(database)
    async with history.lock(MODEL):
        async with history.try_lock(MODEL) as held:
            assert held is None
        async with history.try_lock("other") as other:
            assert other is not None

    async def die() -> None:
        async with history.lock(MODEL) as held:
            await held.record(new_change(None, "1"))
            raise RuntimeError("died")

    with pytest.raises(RuntimeError):
        await die()
    async with history.try_lock(MODEL) as held:
        assert held is not None
        assert (await held.state()).champion is None


async def test_who_was_champion_at_any_moment_and_why(database: Database) -> None:
    history = PromotionRepository(database)
    assert await history.champion_at(MODEL, now()) is None
    moments = []
    for number, old in ((1, None), (2, "1"), (3, "2")):
        result = await record_change(history, new_change(old, str(number), reason=f"reason {number}"))
        moments.append(result.at)
    for number, moment in enumerate(moments, 1):
        outcome = await history.champion_at(MODEL, moment)
        assert outcome is not None
        assert (outcome.promotion.version_to, outcome.promotion.reason) == (str(number), f"reason {number}")
        assert outcome.until == (moments[number] if number < len(moments) else None)
    before = await history.champion_at(MODEL, moments[1] - timedelta(microseconds=1))
    assert before is not None
    assert before.promotion.version_to == "1"
    assert await history.champion_at(MODEL, moments[0] - timedelta(microseconds=1)) is None


async def test_asking_for_a_moment_reads_one_entry_of_the_index(database: Database) -> None:
    await run_sql(
        database,
        "INSERT INTO promotions (model, version_to, act, state, at, settled_at) "
        "SELECT 'm' || mod(n, 5), n::text, 'promote', 'done', now() - n * interval '1 minute', now() "
        "FROM generate_series(1, 5000) n",
    )
    await run_sql(database, "ANALYZE promotions")
    (plan,) = await run_sql(
        database,
        "EXPLAIN (ANALYZE, FORMAT JSON) SELECT version_to FROM promotions WHERE model = 'm1' "
        "AND state = 'done' AND at <= now() - interval '1 day' ORDER BY at DESC, id DESC LIMIT 1",
    )
    scan = plan[0][0]["Plan"]["Plans"][0]
    assert scan["Index Name"] == "ix_promotions_champion"
    assert scan["Actual Rows"] == 1


async def test_history_is_paged_newest_first_with_the_end_of_each_period(database: Database) -> None:
    history = PromotionRepository(database)
    for number in range(1, 6):
        await record_change(history, new_change(None if number == 1 else str(number - 1), str(number)))
    seen, cursor = [], None
    while True:
        page = await history.history(MODEL, limit=2, cursor=cursor)
        seen += list(page.items)
        if (cursor := page.next_cursor) is None:
            break
    assert [period.promotion.version_to for period in seen] == ["5", "4", "3", "2", "1"]
    assert seen[0].until is None
    assert [period.until for period in seen[1:]] == [period.promotion.at for period in seen[:-1]]
    for wrong in ("x", "-1", "9" * 30, ""):
        with pytest.raises(Rejected):
            await history.history(MODEL, cursor=wrong)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE promotions SET state = 'abandoned' WHERE state = 'done'",
        "UPDATE promotions SET version_to = '9' WHERE state = 'intended'",
        "UPDATE promotions SET reason = 'another' WHERE state = 'intended'",
        "UPDATE promotions SET at = now() WHERE state = 'intended'",
        "DELETE FROM promotions",
        "TRUNCATE promotions",
    ],
)
async def test_history_is_not_rewritten(database: Database, statement: str) -> None:
    history = PromotionRepository(database)
    last = await record_change(history, new_change(None, "1"))
    await history.intend(new_change("1", "2"), after=last.id)
    with pytest.raises(Rejected):
        await run_sql(database, statement)


async def test_force_without_a_reason_is_refused_by_the_schema_too(database: Database) -> None:
    with pytest.raises(Rejected, match="forced_for_a_reason"):
        await PromotionRepository(database).intend(new_change(None, "1", forced=True), after=None)


async def test_a_refusal_is_in_the_audit_log_alone(database: Database) -> None:
    history, actor = PromotionRepository(database), uuid4()
    await history.record_refusal(
        MODEL, "3", actor=actor, why="a gate failed", evidence={"gates": {"passed": False}}
    )
    (entry,) = (await AuditRepository(database).list(AuditFilters(subject=MODEL))).items
    assert (entry.action, entry.actor, entry.detail["to"]) == ("champion.refuse", actor, "3")
    assert (await history.history(MODEL)).items == ()
