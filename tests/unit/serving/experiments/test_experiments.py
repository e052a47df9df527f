"""Experiments over HTTP, and the policy runner, on fakes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from db.experiments.counts import ArmStageCounts, ExperimentCounts, ExperimentStage
from db.experiments.experiments import Experiment, NewExperiment
from db.predictions.submissions import Outcome, Submission
from registry.experiments import decisions
from serving.core.caller import Role
from serving.errors import Conflict, ModelNotReady, NotReady
from serving.experiments.policy_runner import PolicyRunner
from serving.experiments.service import traffic_of
from serving.predictions.routing import Split
from tests.fakes.experiments import FakeExperimentRepository
from tests.fakes.predictions import FakePredictionWriter
from tests.fakes.store import FakeStore
from tests.support.app import MODEL, Platform, fake_platform

pytestmark = pytest.mark.anyio
START = {"model": MODEL, "challenger": "1", "share": 0.5}
DECIDE = {"action": "decide", "min_units": 10}


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with fake_platform() as result:
        yield result


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    async with platform.client(Role.ENGINEER) as result:
        yield result


def split(platform: Platform, *, share: float = 1.0, shadow: bool = False) -> Split:
    result = Split(
        experiment_id=uuid4(), stage=3, champion="2", challenger="1", share=share, salt="s", shadow=shadow
    )
    platform.traffic.splits[MODEL] = result
    return result


async def test_an_experiment_is_started_seen_changed_and_stopped(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/experiments", json=START)
    assert response.status_code == 201
    started = response.json()
    assert (started["champion"], started["challenger"], started["state"]) == ("2", "1", "running")
    assert [arm["arm"] for arm in started["arms"]] == ["champion", "challenger"]
    assert started["policy"]["action"] == "observe"
    assert started["verdict"]["verdict"] == "undecided"
    path = f"/v1/experiments/{started['id']}"
    changed = (await client.patch(path, json={"share": 0.75})).json()
    assert (changed["share"], changed["stage"]) == (0.75, 2)
    stopped = (await client.post(f"{path}/stop")).json()
    assert stopped["state"] == "stopped"
    again = (await client.post(f"{path}/stop", json={"reason": "once more"})).json()
    assert again["reason"] == stopped["reason"]
    assert (await client.patch(path, json={"share": 0.5})).status_code == 409
    listed = (await client.get("/v1/experiments")).json()["items"]
    assert [item["id"] for item in listed] == [started["id"]]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"challenger": "2"}, 409),
        ({"challenger": "99"}, 404),
        ({"model": "other"}, 404),
        ({"share": 1.5}, 422),
        ({"share": "half"}, 422),
        ({"policy": {"action": "guess"}}, 422),
        ({"policy": {"unheard": 1}}, 422),
        ({"extra": 1}, 422),
    ],
)
async def test_an_experiment_that_makes_no_sense_is_refused(
    client: httpx.AsyncClient, change: dict[str, Any], status: int
) -> None:
    assert (await client.post("/v1/experiments", json=START | change)).status_code == status


async def test_a_changed_share_and_a_stop_blank_no_verdict(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    started = (await client.post("/v1/experiments", json=START)).json()
    assert started["verdict"]["explanation"].startswith("Feedback on 100 units more of the champion")
    path, records = f"/v1/experiments/{started['id']}", platform.services.experiments.experiments
    await client.patch(path, json={"share": 0.75})
    stages = [ExperimentStage(number=1, share=0.5), ExperimentStage(number=2, share=0.75)]
    records.counted[UUID(started["id"])] = replace(BETTER, stages=stages)
    for report in (await client.get(path), await client.post(f"{path}/stop")):
        found = report.json()
        assert (found["stage"], found["verdict"]["stage"], found["verdict"]["verdict"]) == (2, 1, "better")
        assert "however often one looks" in found["verdict"]["explanation"]
        assert [arm["accuracy"]["value"] for arm in found["arms"]] == [0.5, 0.8]
        known, empty = found["stages"]
        assert [arm["judged_units"] for arm in known["arms"]] == [2_000, 2_000]
        assert (known["verdict"], known["difference"]) == ("better", found["verdict"]["difference"])
        assert (empty["verdict"], empty["difference"], empty["share"]) == ("undecided", None, 0.75)


async def test_one_experiment_of_a_model_runs_at_a_time(client: httpx.AsyncClient) -> None:
    await client.post("/v1/experiments", json=START)
    assert (await client.post("/v1/experiments", json=START)).status_code == 409


async def test_experiments_need_an_engineer_and_unknown_ones_are_404(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    async with platform.client(Role.CLIENT) as other:
        assert (await other.post("/v1/experiments", json=START)).status_code == 403
    assert (await client.get(f"/v1/experiments/{uuid4()}")).status_code == 404
    assert (await client.get("/v1/experiments/no-id")).status_code == 422


async def test_an_answer_carries_its_arm_and_its_experiment(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    result = split(platform)
    answer = (await client.post("/v1/predict", json={"text": "so good", "unit": "ada"})).json()
    assert (answer["arm"], answer["model_version"]) == ("challenger", "1")
    assert answer["experiment_id"] == str(result.experiment_id)
    named = (await client.post("/v1/predict", json={"text": "so good", "version": "2"})).json()
    assert (named["arm"], named["experiment_id"]) == ("named", None)


async def test_where_the_challenger_fails_the_champion_answers_and_the_fault_is_counted(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    result = split(platform)
    platform.encoders.broken_versions = {"1"}
    answer = await client.post("/v1/predict", json={"text": "so good"})
    assert answer.status_code == 201
    assert (answer.json()["arm"], answer.json()["experiment_id"]) == ("champion", None)
    assert platform.services.predictions.faults.take() == {(result.experiment_id, 3, "challenger"): 1}


async def test_a_shadow_scores_after_the_reply_and_is_stored_as_such(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    result = split(platform, shadow=True)
    answer = (await client.post("/v1/predict", json={"text": "so good"})).json()
    assert (answer["arm"], answer["model_version"]) == ("champion", "2")
    store = platform.store
    assert store is not None
    await platform.services.predictions.close()
    shadow = next(row for row in store.predictions.values() if row.arm == "shadow")
    assert (shadow.version, shadow.experiment_id) == ("1", result.experiment_id)
    assert shadow.id > UUID(answer["id"])


async def test_a_shadow_whose_text_was_erased_meanwhile_does_not_bring_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    erased, commit = asyncio.Event(), FakePredictionWriter.commit

    async def commit_late(self: FakePredictionWriter, submissions: Sequence[Submission]) -> list[Outcome]:
        if any(submission.beside for submission in submissions):
            await erased.wait()
        return await commit(self, submissions)

    monkeypatch.setattr(FakePredictionWriter, "commit", commit_late)
    async with fake_platform() as platform, platform.client(Role.ADMIN) as client:
        split(platform, shadow=True)
        answer = (await client.post("/v1/predict", json={"text": "forget me"})).json()
        receipt = await client.delete(f"/v1/texts/{answer['text_id']}")
        assert receipt.json()["erased"]["predictions"] == 1
        erased.set()
        await platform.services.predictions.close()
        assert (await client.get("/v1/predictions")).json()["items"] == []
        assert platform.store is not None
        assert UUID(answer["text_id"]) not in platform.store.texts


async def test_a_shadow_on_the_champions_encoder_joins_its_batch(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    split(platform, shadow=True)
    await client.post("/v1/predict", json={"text": "so good"})
    assert platform.encoders.batches == [2]


async def test_a_shadow_that_fails_is_counted_and_felt_by_nobody(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    result = split(platform, shadow=True)
    platform.encoders.broken_versions = {"1"}
    assert (await client.post("/v1/predict", json={"text": "so good"})).status_code == 201
    await platform.services.predictions.close()
    assert platform.services.predictions.faults.take() == {(result.experiment_id, 3, "shadow"): 1}


async def test_what_was_not_stored_has_no_shadow(platform: Platform, client: httpx.AsyncClient) -> None:
    split(platform, shadow=True)
    store = platform.store
    assert store is not None
    store.down = True
    assert (await client.post("/v1/predict", json={"text": "so good"})).status_code == 503
    store.down = False
    await platform.services.predictions.close()
    assert not store.predictions


class Promoter:
    """A lifecycle that makes a challenger the champion, or raises a given error."""

    def __init__(self) -> None:
        self.champion: str | None = "2"
        self.promoted: list[str] = []
        self.fault: Exception | None = None

    def present(self, model: str) -> str | None:
        return self.champion

    async def promote(self, experiment: Experiment, decision: decisions.PolicyDecision) -> None:
        if self.fault is not None:
            raise self.fault
        self.promoted.append(experiment.challenger)
        self.champion = experiment.challenger


def arm(name: str, right: int, judged: int, *, stage: int = 1, units: int | None = None) -> ArmStageCounts:
    seen = units or judged
    return ArmStageCounts(
        stage=stage,
        arm=name,
        units=seen,
        new_units=seen,
        answered=seen,
        judged=judged,
        total=float(right),
        squares=float(right),
    )


async def experiment(records: FakeExperimentRepository, policy: dict[str, Any], **fields: Any) -> Experiment:
    new = NewExperiment(
        model=MODEL, champion="2", challenger="1", share=0.5, shadow=False, salt="s", policy=policy
    )
    return await records.create(replace(new, **fields), actor=None)


def build_policy_runner(records: FakeExperimentRepository, promoter: Promoter) -> PolicyRunner:
    return PolicyRunner(records, records, promoter.present, promoter.promote)


def counts(champion: tuple[int, int], challenger: tuple[int, int]) -> ExperimentCounts:
    return ExperimentCounts(
        stages=[ExperimentStage(number=1, share=0.5)],
        arms=[arm("champion", *champion), arm("challenger", *challenger)],
    )


BETTER = counts((1_000, 2_000), (1_600, 2_000))
WORSE = counts((1_600, 2_000), (1_000, 2_000))


async def test_a_better_challenger_is_promoted_and_the_decision_can_be_recomputed() -> None:
    records, promoter = FakeExperimentRepository(FakeStore()), Promoter()
    result = await experiment(records, DECIDE)
    records.counted[result.id] = BETTER
    await build_policy_runner(records, promoter).run_once()
    assert promoter.promoted == ["1"]
    (decided,) = await records.decisions(result.id)
    assert (decided.action, decided.verdict) == ("promote", "better")
    again = decisions.decide(
        decisions.Evidence.parse(decided.evidence), decisions.Policy.parse(decided.policy)
    )
    assert again.numbers == decided.numbers
    assert (await records.get(result.id)).reason == f"promoted: {decided.reason}"


async def test_the_verdict_that_ended_an_experiment_stays(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    started = (await client.post("/v1/experiments", json=START | {"policy": DECIDE})).json()
    path, records = f"/v1/experiments/{started['id']}", platform.services.experiments.experiments
    records.counted[UUID(started["id"])] = WORSE
    await build_policy_runner(records, Promoter()).run_once()
    # The last answers are judged after the end.
    records.counted[UUID(started["id"])] = counts((1_600, 2_000), (1_590, 2_000))
    found = (await client.get(path)).json()
    assert (found["state"], found["verdict"]["verdict"]) == ("stopped", "worse")


async def test_a_worse_challenger_is_stopped() -> None:
    records, promoter = FakeExperimentRepository(FakeStore()), Promoter()
    result = await experiment(records, DECIDE)
    records.counted[result.id] = WORSE
    await build_policy_runner(records, promoter).run_once()
    assert not promoter.promoted
    assert (await records.get(result.id)).state == "stopped"
    assert [each.verdict for each in await records.decisions(result.id)] == ["worse"]


async def test_the_default_policy_decides_nothing() -> None:
    records, promoter = FakeExperimentRepository(FakeStore()), Promoter()
    result = await experiment(records, {})
    records.counted[result.id] = BETTER
    await build_policy_runner(records, promoter).run_once()
    assert (await records.get(result.id)).running
    assert not promoter.promoted


async def test_a_ramp_goes_up_a_step_once_enough_units_were_met() -> None:
    records = FakeExperimentRepository(FakeStore())
    result = await experiment(
        records, {"action": "decide", "ramp": [0.5, 0.75], "step_units": 100, "min_units": 10_000}
    )
    records.counted[result.id] = counts((150, 200), (150, 200))
    await build_policy_runner(records, Promoter()).run_once()
    now = await records.get(result.id)
    assert (now.share, now.stage, now.running) == (0.75, 2, True)


async def test_a_promotion_that_was_interrupted_is_carried_out_once_the_process_is_back() -> None:
    records, promoter = FakeExperimentRepository(FakeStore()), Promoter()
    result = await experiment(records, DECIDE)
    records.counted[result.id] = BETTER
    promoter.fault = NotReady("the registry is away")
    await build_policy_runner(records, promoter).run_once()
    assert (await records.get(result.id)).running
    promoter.fault = None
    records.counted[result.id] = WORSE
    await build_policy_runner(records, promoter).run_once()
    assert promoter.promoted == ["1"]
    assert len(await records.decisions(result.id)) == 1


async def test_a_gate_that_stands_in_the_way_ends_the_experiment_with_its_reason() -> None:
    records, promoter = FakeExperimentRepository(FakeStore()), Promoter()
    result = await experiment(records, DECIDE)
    records.counted[result.id] = BETTER
    promoter.fault = Conflict("the gate `cosine` fails")
    await build_policy_runner(records, promoter).run_once()
    now = await records.get(result.id)
    assert not now.running
    assert now.reason is not None
    assert now.reason.endswith("not promoted: the gate `cosine` fails")


async def test_an_experiment_ends_when_somebody_changes_the_champion() -> None:
    records, promoter = FakeExperimentRepository(FakeStore()), Promoter()
    result = await experiment(records, {})
    promoter.champion = "7"
    await build_policy_runner(records, promoter).run_once()
    assert (await records.get(result.id)).reason == "the champion became version 7"


async def test_an_experiment_whose_evidence_can_not_be_read_holds_up_no_other() -> None:
    records, promoter = FakeExperimentRepository(FakeStore()), Promoter()
    broken = await experiment(records, DECIDE)
    fine = await experiment(records, DECIDE, model="other")
    records.counted[fine.id] = BETTER

    async def unreadable(experiment_id: UUID) -> ExperimentCounts:
        if experiment_id == broken.id:
            raise ModelNotReady("no")
        return records.counted[experiment_id]

    evidence = FakeExperimentRepository(FakeStore())
    evidence.counts = unreadable  # type: ignore[method-assign]
    await PolicyRunner(records, evidence, promoter.present, promoter.promote).run_once()
    assert promoter.promoted == ["1"]


async def test_traffic_is_split_by_the_running_experiments_alone() -> None:
    records = FakeExperimentRepository(FakeStore())
    result = await experiment(records, {})
    stopped = await experiment(records, {}, model="other")
    await records.stop(stopped.id, actor=None, reason="over")
    traffic = traffic_of(await records.list())
    assert traffic.splits.keys() == {MODEL}
    assert traffic.splits[MODEL].experiment_id == result.id


async def test_a_named_version_is_requested_and_an_unknown_one_is_not(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    for version, status in (("1", 201), ("3", 503), ("99", 404)):
        answer = await client.post("/v1/predict", json={"text": "so good", "version": version})
        assert answer.status_code == status
    assert platform.requested_versions == {(MODEL, "1"), (MODEL, "3")}


async def test_metrics_say_which_version_is_in_which_state_and_who_is_champion(
    client: httpx.AsyncClient,
) -> None:
    page = (await client.get("/metrics")).text
    assert 'valence_model_version_state{model="sentiment",state="failed",version="4"} 1.0' in page
    assert 'valence_model_champion{model="sentiment",version="2"} 1.0' in page


async def test_a_challenger_that_may_be_promoted_is_measured_at_the_start(
    platform: Platform, client: httpx.AsyncClient
) -> None:
    await client.post("/v1/experiments", json=START)
    assert not platform.evaluations.rows
    for item in (await client.get("/v1/experiments")).json()["items"]:
        await client.post(f"/v1/experiments/{item['id']}/stop")
    await client.post("/v1/experiments", json=START | {"policy": DECIDE})
    assert "1" in {row.version for row in platform.evaluations.rows.values()}
