"""Two policy runners of one experiment, as during an upgrade."""

import asyncio
from uuid import UUID

import pytest

from db.connection.engine import Database
from db.experiments.counts import ArmStageCounts, ExperimentCounts, ExperimentStage
from db.experiments.experiments import Experiment, ExperimentRepository, NewExperiment
from registry.experiments import decisions
from serving.experiments.policy_runner import PolicyRunner

pytestmark = pytest.mark.anyio


class Met:
    """Counts that no policy runner gets before both have asked for them."""

    def __init__(self, counts: ExperimentCounts) -> None:
        self._counts = counts
        self._both = asyncio.Barrier(2)

    async def counts(self, experiment_id: UUID) -> ExperimentCounts:
        await self._both.wait()
        return self._counts


class Promoter:
    def __init__(self) -> None:
        self.champion = "2"

    def present(self, model: str) -> str:
        return self.champion

    async def promote(self, experiment: Experiment, decision: decisions.PolicyDecision) -> None:
        self.champion = experiment.challenger


def counts(champion: int, challenger: int) -> ExperimentCounts:
    arms = [
        ArmStageCounts(
            stage=1,
            arm=arm,
            units=2_000,
            new_units=2_000,
            answered=2_000,
            judged=2_000,
            total=float(right),
            squares=float(right),
        )
        for arm, right in (("champion", champion), ("challenger", challenger))
    ]
    return ExperimentCounts(stages=[ExperimentStage(number=1, share=0.5)], arms=arms)


@pytest.mark.parametrize(
    ("found", "action", "champion"),
    [(counts(1_000, 1_600), "promote", "3"), (counts(1_600, 1_000), "stop", "2")],
)
async def test_two_judges_at_once_decide_once(
    database: Database, found: ExperimentCounts, action: str, champion: str
) -> None:
    records, promoter = ExperimentRepository(database), Promoter()
    policy = {"action": "decide"}
    result = await records.create(
        NewExperiment(
            model="sentiment", champion="2", challenger="3", share=0.5, shadow=False, salt="s", policy=policy
        ),
        actor=None,
    )
    evidence = Met(found)
    runners = [PolicyRunner(records, evidence, promoter.present, promoter.promote) for _ in range(2)]
    await asyncio.gather(*(runner.run_once() for runner in runners))
    (decided,) = await records.decisions(result.id)
    assert (decided.action, promoter.champion) == (action, champion)
    now = await records.get(result.id)
    assert now.reason == (f"promoted: {decided.reason}" if action == "promote" else decided.reason)
