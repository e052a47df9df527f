"""Experiments: permitted changes of their state, and the counts of their arms."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.accounts.audit import AuditFilters, AuditRepository
from db.accounts.keys import Key
from db.connection.engine import Database
from db.core.ids import Uuid7Clock
from db.errors import Conflict, DatabaseError, NotFound
from db.experiments.counts import SETTLING_SECONDS, ArmStageCounts, CountRepository
from db.experiments.experiments import Experiment, ExperimentRepository, NewDecision, NewExperiment
from db.experiments.traffic import TrafficFeed
from db.predictions.feedback import FeedbackRepository, NewFeedback
from tests.support.row_factories import new_key, new_submission, new_text, new_writer, run_sql

pytestmark = pytest.mark.anyio


def new(**changes: Any) -> NewExperiment:
    values: dict[str, Any] = {
        "model": "sentiment",
        "champion": "2",
        "challenger": "3",
        "share": 0.5,
        "shadow": False,
        "salt": "salt",
        "policy": {"action": "observe"},
    }
    return NewExperiment(**(values | changes))


def decision(action: str = "ramp", share: float | None = 0.75) -> NewDecision:
    return NewDecision(
        action=action,
        verdict="undecided",
        reason="enough units",
        share=share,
        evidence={"stages": []},
        policy={"action": "decide"},
        numbers={"p": 0.5},
    )


async def test_an_experiment_follows_its_changes_and_every_act_is_audited(database: Database) -> None:
    key, experiments = await new_key(database, role="engineer"), ExperimentRepository(database)
    experiment = await experiments.create(new(), actor=key.id)
    assert (experiment.share, experiment.stage, experiment.running) == (0.5, 1, True)
    changed = await experiments.change(experiment.id, actor=key.id, share=0.1, policy={"action": "decide"})
    assert (changed.share, changed.stage, changed.policy) == (0.1, 2, {"action": "decide"})
    assert await experiments.change(experiment.id, actor=key.id, share=0.1) == changed
    stopped = await experiments.stop(experiment.id, actor=key.id, reason="enough")
    assert (stopped.state, stopped.reason) == ("stopped", "enough")
    assert await experiments.stop(experiment.id, actor=key.id, reason="again") == stopped
    assert await experiments.get(experiment.id) == stopped
    with pytest.raises(Conflict):
        await experiments.change(experiment.id, actor=key.id, share=0.2)
    acts = (await AuditRepository(database).list(AuditFilters(subject=str(experiment.id)))).items
    assert [act.action for act in acts] == ["experiment.stop", "experiment.change", "experiment.create"]
    assert {act.actor for act in acts} == {key.id}


async def test_two_at_once_start_one_experiment_of_a_model(database: Database) -> None:
    experiments = ExperimentRepository(database)
    experiment = await asyncio.gather(
        *(experiments.create(new(), actor=None) for _ in range(4)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in experiment) == ["Duplicate"] * 3 + ["Experiment"]
    await experiments.create(new(model="other"), actor=None)
    assert len(await experiments.list(running=True)) == 2


async def test_a_decision_is_stored_with_its_effect_only_in_the_stage_it_was_based_on(
    database: Database,
) -> None:
    experiments = ExperimentRepository(database)
    experiment = await experiments.create(new(), actor=None)
    ramped = await experiments.change(
        experiment.id, actor=None, share=0.75, decision=decision(), seen=experiment
    )
    assert (ramped.share, ramped.stage) == (0.75, 2)
    with pytest.raises(Conflict, match="stage 2"):
        await experiments.change(experiment.id, actor=None, share=0.9, decision=decision(), seen=experiment)
    with pytest.raises(Conflict):
        await experiments.decide(experiment, decision("promote", None))
    await experiments.stop(experiment.id, actor=None, reason="worse", decision=decision("stop", None))
    decided = await experiments.decisions(experiment.id)
    assert [(each.action, each.share) for each in decided] == [("ramp", 0.75), ("stop", None)]
    assert decided[0].numbers == {"p": 0.5}


async def test_a_decision_can_be_neither_changed_nor_removed(database: Database) -> None:
    experiments = ExperimentRepository(database)
    experiment = await experiments.create(new(), actor=None)
    await experiments.decide(experiment, decision("promote", None))
    for statement in ("UPDATE decisions SET reason = 'other'", "DELETE FROM decisions"):
        with pytest.raises(DatabaseError, match="42501"):
            await run_sql(database, statement)


async def test_unknown_experiments_are_not_found(database: Database) -> None:
    experiments = ExperimentRepository(database)
    for act in (
        experiments.get(uuid4()),
        experiments.stop(uuid4(), actor=None, reason="no"),
        experiments.change(uuid4(), actor=None, share=0.1),
    ):
        with pytest.raises(NotFound):
            await act


class Arms:
    """Answers of an experiment at chosen times, some of them judged."""

    def __init__(self, database: Database, key: Key, experiment: Experiment) -> None:
        self.database = database
        self.key = key
        self.experiment = experiment
        self.start = datetime.now(UTC) - timedelta(minutes=20)

    async def stages(self, *minutes: float) -> None:
        """Begin a stage at each of these minutes after the start."""
        await run_sql(
            self.database,
            "UPDATE experiment_stages SET started_at = %s WHERE experiment_id = %s AND number = 1",
            self.start,
            self.experiment.id,
        )
        for number, minute in enumerate(minutes, start=2):
            await run_sql(
                self.database,
                "INSERT INTO experiment_stages (experiment_id, number, share, started_at) VALUES (%s, %s, %s, %s)",
                self.experiment.id,
                number,
                0.5 + number / 10,
                self.start + timedelta(minutes=minute),
            )

    async def answer(
        self, unit: str | None, arm: str, *, at: float = 1.0, label: str = "positive", **fields: Any
    ) -> UUID:
        """Store an answer at a minute after the start; return its id."""
        moment = self.start + timedelta(minutes=at)
        prediction_id = Uuid7Clock(lambda: int(moment.timestamp() * 1e9)).next()
        request = new_submission(
            self.key,
            fields.pop("texts", None) or [new_text()],
            id=prediction_id,
            experiment_id=self.experiment.id,
            arm=arm,
            unit=unit,
            label=label,
            **fields,
        )
        await new_writer(self.database).commit([request])
        return prediction_id

    async def judge(
        self, prediction_id: UUID, *, is_correct: bool, label: str | None = None, by: Key | None = None
    ) -> None:
        judge = by or self.key
        await FeedbackRepository(self.database).put(
            NewFeedback(
                prediction_id=prediction_id,
                holder_id=judge.holder_id,
                key_id=judge.id,
                is_correct=is_correct,
                label=label,
            )
        )

    async def of(self, arm: str, stage: int = 1) -> ArmStageCounts:
        return (await CountRepository(self.database).counts(self.experiment.id)).of(stage, arm)


@pytest.fixture
async def arms(database: Database) -> Arms:
    experiment = await ExperimentRepository(database).create(new(), actor=None)
    return Arms(database, await new_key(database), experiment)


async def test_units_are_counted_once_whatever_they_ask(arms: Arms) -> None:
    await arms.stages()
    for _ in range(3):
        await arms.answer("ada", "champion")
    await arms.answer("bob", "champion", queue_ms=10.0, infer_ms=20.0)
    await arms.answer(None, "challenger", request_id="r1")
    await arms.answer(None, "challenger", request_id="r2")
    champion, challenger = await arms.of("champion"), await arms.of("challenger")
    assert (champion.units, champion.new_units, champion.answered) == (2, 2, 4)
    assert (challenger.units, challenger.new_units, challenger.answered) == (2, 2, 2)
    assert champion.p95_ms is not None
    assert 4.0 < champion.p95_ms <= 30.0
    assert (champion.judged, champion.total, champion.squares) == (0, 0.0, 0.0)


async def test_feedback_counts_by_the_mean_of_a_unit_as_it_stands(arms: Arms) -> None:
    await arms.stages()
    first, second = await arms.answer("ada", "champion"), await arms.answer("ada", "champion")
    third = await arms.answer("bob", "champion")
    for prediction_id, is_correct in ((first, True), (second, False), (third, True)):
        await arms.judge(prediction_id, is_correct=is_correct)
    row = await arms.of("champion")
    assert (row.judged, row.total, row.squares) == (2, 1.5, 1.25)
    await arms.judge(third, is_correct=True)
    assert await arms.of("champion") == row
    await arms.judge(third, is_correct=False)
    assert (await arms.of("champion")).total == 0.5
    engineer = await new_key(arms.database, role="engineer")
    await arms.judge(third, is_correct=True, by=engineer)
    row = await arms.of("champion")
    assert (row.judged, row.total) == (2, 1.5)


async def test_a_unit_is_met_once_and_stages_settle_before_they_count(arms: Arms) -> None:
    settling = SETTLING_SECONDS / 60
    await arms.stages(10)
    await arms.answer("ada", "champion", at=1)
    await arms.answer("ada", "challenger", at=12)
    await arms.answer("late", "champion", at=10 + settling / 2)
    await arms.answer("late", "challenger", at=13)
    await arms.answer("new", "challenger", at=14)
    assert (await arms.of("champion", 1)).new_units == 1
    assert (await arms.of("champion", 2)).answered == 0
    second = await arms.of("challenger", 2)
    assert (second.units, second.new_units, second.answered) == (3, 1, 3)


async def test_late_feedback_counts_for_the_stage_of_its_answer(arms: Arms) -> None:
    await arms.stages(10)
    old = await arms.answer("ada", "champion", at=1)
    await arms.judge(old, is_correct=True)
    assert ((await arms.of("champion", 1)).judged, (await arms.of("champion", 2)).judged) == (1, 0)


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ((True, None), (1, 0.0)),
        ((False, "negative"), (1, 1.0)),
        ((False, "neutral"), (1, 0.0)),
        ((False, None), (0, 0.0)),
    ],
)
async def test_a_shadow_counts_the_feedback_on_the_answer_of_the_same_request(
    arms: Arms, judged: tuple[bool, str | None], expected: tuple[int, float]
) -> None:
    await arms.stages()
    texts = [new_text()]
    answered = await arms.answer("ada", "champion", texts=texts, request_id="one")
    await arms.answer("ada", "shadow", texts=texts, request_id="one", label="negative")
    await arms.judge(answered, is_correct=judged[0], label=judged[1])
    row = await arms.of("shadow")
    assert (row.judged, row.total) == expected
    assert row.new_units == 0


async def test_faults_add_up_by_stage_and_arm(arms: Arms) -> None:
    await arms.stages()
    evidence = CountRepository(arms.database)
    for faults in (
        {(arms.experiment.id, 1, "challenger"): 2},
        {(arms.experiment.id, 1, "challenger"): 3},
        {},
    ):
        await evidence.add_faults(faults)
    row = await arms.of("challenger")
    assert (row.faults, row.answered) == (5, 0)


async def test_traffic_is_followed_by_notice_and_by_asking(database: Database) -> None:
    experiments = ExperimentRepository(database)
    # The first feed must learn of it by notice: it polls once an hour.
    for feed in (TrafficFeed(database, poll=3600), TrafficFeed(database, poll=0.01)):
        changes = feed.changes()
        seen: list[Sequence[Experiment]] = [await anext(changes)]
        experiment = await experiments.create(new(), actor=None)
        async with asyncio.timeout(10):
            seen.append(await anext(changes))
            await experiments.change(experiment.id, actor=None, share=0.125)
            seen.append(await anext(changes))
            await experiments.stop(experiment.id, actor=None, reason="over")
            seen.append(await anext(changes))
        assert [[each.share for each in result] for result in seen] == [[], [0.5], [0.125], []]
        await changes.aclose()  # type: ignore[attr-defined]
