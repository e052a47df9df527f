"""A fake of the experiments, their decisions and their counts."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from db.core.rows import values_of
from db.errors import Conflict, Duplicate, NotFound, Rejected
from db.experiments.counts import ExperimentCounts, ExperimentStage
from db.experiments.experiments import Decision, Experiment, NewDecision, NewExperiment
from tests.fakes.store import FakeStore


class FakeExperimentRepository:
    """Experiments in memory, and the counts of their arms: zeros, or those that a test sets in `counted`."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.experiments: dict[UUID, Experiment] = {}
        self.counted: dict[UUID, ExperimentCounts] = {}
        self._decisions: dict[UUID, list[Decision]] = {}
        self._stages: dict[UUID, list[ExperimentStage]] = {}

    async def create(self, new: NewExperiment, *, actor: UUID | None) -> Experiment:
        """Start an experiment."""
        if not 0 <= new.share <= 1:
            raise Rejected("the share isn't in [0, 1]")
        if any(each.running and each.model == new.model for each in self.experiments.values()):
            raise Duplicate(f"an experiment of {new.model!r} is running already: stop it first")
        now = datetime.now(UTC)
        created = Experiment(
            **values_of(new),
            id=uuid4(),
            stage=1,
            state="running",
            reason=None,
            created_at=now,
            updated_at=now,
            stopped_at=None,
        )
        self.experiments[created.id] = created
        self._stages[created.id] = [ExperimentStage(number=1, share=created.share)]
        detail = {"challenger": created.challenger, "champion": created.champion, "share": created.share}
        self._audit(created, actor, "create", detail | {"shadow": created.shadow})
        return created

    async def get(self, experiment_id: UUID) -> Experiment:
        """Return one experiment."""
        if experiment_id not in self.experiments:
            raise NotFound(f"there is no experiment {experiment_id}")
        return self.experiments[experiment_id]

    async def list(self, *, running: bool = False, limit: int = 100) -> tuple[Experiment, ...]:
        """Return experiments, newest first."""
        matching = [each for each in self.experiments.values() if each.running or not running]
        return tuple(matching[::-1][:limit])

    async def change(
        self,
        experiment_id: UUID,
        *,
        actor: UUID | None,
        share: float | None = None,
        policy: Mapping[str, Any] | None = None,
        decision: NewDecision | None = None,
        seen: Experiment | None = None,
    ) -> Experiment:
        """Set share and policy; a new share begins a stage."""
        now = await self._get_running(experiment_id, seen)
        detail: dict[str, Any] = {}
        if policy is not None and policy != now.policy:
            detail["policy"] = dict(policy)
        if share is not None and share != now.share:
            detail["share"] = share
        if not detail:
            return now
        if decision is not None:
            self._add_decision(now, decision)
        changed = replace(now, **detail, updated_at=datetime.now(UTC))
        if "share" in detail:
            changed = replace(changed, stage=now.stage + 1)
            self._stages[now.id].append(ExperimentStage(number=changed.stage, share=changed.share))
        self.experiments[experiment_id] = changed
        self._audit(changed, actor, "change", detail)
        return changed

    async def decide(self, seen: Experiment, decision: NewDecision) -> None:
        """Store a decision that is about to be carried out."""
        now = await self._get_running(seen.id, seen)
        made = [(each.action, each.policy) for each in await self.decisions(seen.id)]
        if (decision.action, decision.policy) in made:
            raise Conflict(f"experiment {seen.id}: {decision.action} has been decided already")
        self._add_decision(now, decision)

    async def stop(
        self,
        experiment_id: UUID,
        *,
        actor: UUID | None,
        reason: str,
        decision: NewDecision | None = None,
        seen: Experiment | None = None,
    ) -> Experiment:
        """Stop it; an experiment that has stopped stays unchanged."""
        now = await self.get(experiment_id)
        if not now.running:
            return now
        now = await self._get_running(experiment_id, seen)
        if decision is not None:
            self._add_decision(now, decision)
        moment = datetime.now(UTC)
        stopped = replace(now, state="stopped", reason=reason, stopped_at=moment, updated_at=moment)
        self.experiments[experiment_id] = stopped
        self._audit(stopped, actor, "stop", {"reason": reason})
        return stopped

    async def decisions(self, experiment_id: UUID) -> tuple[Decision, ...]:
        """Return the policy's decisions, oldest first."""
        return tuple(self._decisions.get(experiment_id, ()))

    async def counts(self, experiment_id: UUID) -> ExperimentCounts:
        """Return the stages, and the counts that a test has set."""
        stages = self._stages.get(experiment_id, [])
        return self.counted.get(experiment_id, ExperimentCounts(stages=stages, arms=[]))

    async def _get_running(self, experiment_id: UUID, seen: Experiment | None) -> Experiment:
        now = await self.get(experiment_id)
        if not now.running:
            raise Conflict(f"experiment {experiment_id} has stopped: start another one")
        if seen is not None and now.stage != seen.stage:
            raise Conflict(f"experiment {experiment_id} is in stage {now.stage} now")
        if seen is not None and now.policy != seen.policy:
            raise Conflict(f"experiment {experiment_id} has another policy now")
        return now

    def _add_decision(self, now: Experiment, decision: NewDecision) -> None:
        decisions = self._decisions.setdefault(now.id, [])
        decisions.append(Decision(**values_of(decision), id=len(decisions) + 1, at=datetime.now(UTC)))

    def _audit(
        self, experiment: Experiment, actor: UUID | None, action: str, detail: Mapping[str, Any]
    ) -> None:
        self._store.append(
            actor, f"experiment.{action}", str(experiment.id), {"model": experiment.model, **detail}
        )
