"""Evaluations in a real database: one at a time, restarted after a death, finished once."""

import asyncio
from uuid import uuid4

import pytest

from db.accounts.audit import AuditFilters, AuditRepository
from db.connection.engine import Database
from db.errors import NotFound
from db.models.evaluations import ATTEMPTS, Evaluation, EvaluationRepository, NewEvaluation
from tests.support.row_factories import run_sql

pytestmark = pytest.mark.anyio


def new_evaluation(bundle: str = "b", data: str = "d", **more: object) -> NewEvaluation:
    return NewEvaluation(bundle_digest=bundle, data_digest=data, model="sentiment", version="2", **more)  # type: ignore[arg-type]


async def test_many_requests_at_once_are_one(database: Database) -> None:
    evaluations, actor = EvaluationRepository(database), uuid4()
    result = await asyncio.gather(
        *(evaluations.request(new_evaluation(requested_by=actor)) for _ in range(8))
    )
    assert len({each.id for each in result}) == 1
    other = await evaluations.request(new_evaluation(data="e"))
    assert other.id != result[0].id
    entries = (await AuditRepository(database).list(AuditFilters(subject="sentiment"))).items
    assert [entry.action for entry in entries] == ["evaluation.request"] * 2
    with pytest.raises(NotFound):
        await evaluations.get(0)


async def test_one_is_worked_on_at_a_time_the_oldest_first(database: Database) -> None:
    evaluations = EvaluationRepository(database)
    first, second = (
        await evaluations.request(new_evaluation("a")),
        await evaluations.request(new_evaluation("b")),
    )
    claims = await asyncio.gather(*(evaluations.claim() for _ in range(6)))
    (claimed,) = [claim for claim in claims if claim is not None]
    assert (claimed.id, claimed.attempts) == (first.id, 1)
    assert await evaluations.heartbeat(first.id)
    assert await evaluations.claim() is None
    assert await evaluations.finish(first.id, {"a": 1})
    assert not await evaluations.fail(first.id, "late")
    assert not await evaluations.heartbeat(first.id)
    following = await evaluations.claim()
    assert following is not None
    assert following.id == second.id
    assert await evaluations.fail(second.id, "it raises")
    assert await evaluations.claim() is None


async def test_a_report_is_found_by_both_digests_the_latest_first(database: Database) -> None:
    evaluations = EvaluationRepository(database)
    for number in range(3):
        outcome = await evaluations.request(new_evaluation())
        await evaluations.finish(outcome.id, {"number": number})
    failed = await evaluations.request(new_evaluation())
    await evaluations.fail(failed.id, "it raises")
    result = await evaluations.find_report("b", "d")
    assert isinstance(result, Evaluation)
    assert result.report == {"number": 2}
    assert await evaluations.find_report("b", "e") is None
    listed = await evaluations.list_of_bundle("b", limit=2)
    assert [(each.state, each.reason) for each in listed] == [("failed", "it raises"), ("done", None)]


async def test_a_process_that_gives_no_sign_loses_its_work_to_the_next(database: Database) -> None:
    evaluations = EvaluationRepository(database, stale_seconds=30)
    result = await evaluations.request(new_evaluation())
    for attempt in range(1, ATTEMPTS + 1):
        claimed = await evaluations.claim()
        assert claimed is not None
        assert (claimed.id, claimed.attempts) == (result.id, attempt)
        assert await evaluations.claim() is None
        await run_sql(database, "UPDATE evaluations SET seen_at = now() - interval '31 seconds'")
    assert await evaluations.claim() is None
    ended = await evaluations.get(result.id)
    assert (ended.state, ended.reason) == ("failed", f"its process died {ATTEMPTS} times")
