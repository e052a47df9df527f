"""The evaluation queue of the control: one at a time, each once, finished in every case."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from serving.errors import Conflict, NotFound
from serving.models.evaluation_queue import EvaluationQueue
from tests.fakes.models import FakeEvaluationRepository
from tests.fakes.registry import FakeModelRegistry
from tests.fakes.store import FakeStore
from tests.support.app import MODEL, catalog
from tests.support.reports import report

pytestmark = pytest.mark.anyio


class Bench:
    """Evaluations over fakes; `work` is the work of the process."""

    def __init__(self) -> None:
        self.records = FakeEvaluationRepository(FakeStore())
        entries = catalog().models[MODEL]
        self.registry = FakeModelRegistry(
            {version: entry.record for version, entry in entries.items()}, champion="2"
        )
        self.run_module: list[int] = []
        self.at_once = 0
        self.work: Callable[[int], str | None] = lambda _: None
        self.evaluations = EvaluationQueue(
            evaluations=self.records, registry=self.registry, catalog=catalog, launch=self.launch
        )

    async def launch(self, number: int) -> str | None:
        self.run_module.append(number)
        self.at_once += 1
        assert self.at_once == 1
        await asyncio.sleep(0)
        why = self.work(number)
        if why is None:
            row = self.records.rows[number]
            await self.records.finish(number, report(row.version).dump())
        self.at_once -= 1
        return why


async def test_asking_again_while_it_runs_is_the_same_evaluation() -> None:
    bench, actor = Bench(), uuid4()
    first = await bench.evaluations.request(MODEL, "3", actor)
    assert await bench.evaluations.request(MODEL, "3", uuid4()) == first
    assert first.requested_by == actor
    while await bench.evaluations.step():
        pass
    assert (await bench.evaluations.request(MODEL, "3", actor)).id != first.id


async def test_the_champion_is_measured_first_if_it_has_no_report() -> None:
    bench = Bench()
    await bench.evaluations.request(MODEL, "3", None)
    while await bench.evaluations.step():
        pass
    assert [bench.records.rows[number].version for number in bench.run_module] == ["2", "3"]
    await bench.evaluations.request(MODEL, "1", None)
    while await bench.evaluations.step():
        pass
    assert [bench.records.rows[number].version for number in bench.run_module] == ["2", "3", "1"]


async def test_a_process_that_ends_badly_fails_its_evaluation_with_the_reason() -> None:
    bench = Bench()
    bench.work = lambda _: "its process was ended by SIGKILL"
    result = await bench.evaluations.request(MODEL, "2", None)
    assert await bench.evaluations.step()
    row = bench.records.rows[result.id]
    assert (row.state, row.reason) == ("failed", "its process was ended by SIGKILL")


async def test_a_process_that_leaves_no_report_is_no_success() -> None:
    bench = Bench()
    result = await bench.evaluations.request(MODEL, "2", None)

    async def nothing(_: int) -> None:
        return None

    bench.evaluations = replace(bench.evaluations, launch=nothing)
    await bench.evaluations.step()
    assert bench.records.rows[result.id].reason == "its process ended without a report"


async def test_the_loop_starts_work_at_once_on_a_request() -> None:
    bench = Bench()
    running = asyncio.create_task(bench.evaluations.run())
    result = await bench.evaluations.request(MODEL, "2", None)
    async with asyncio.timeout(2):
        while bench.records.rows[result.id].state == "running":  # noqa: ASYNC110 - the fake has no event
            await asyncio.sleep(0.01)
    running.cancel()
    assert bench.records.rows[result.id].state == "done"


async def test_what_cant_be_measured_is_refused() -> None:
    bench = Bench()
    with pytest.raises(NotFound):
        await bench.evaluations.request(MODEL, "9", None)
    bench.registry.data = None
    with pytest.raises(Conflict, match="no held-out set"):
        await bench.evaluations.request(MODEL, "1", None)
