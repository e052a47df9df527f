"""In-memory stands-in for the stored experiments and what their arms did. For tests without PostgreSQL."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from db.errors import Conflict, Duplicate, NotFound
from db.experiments.counts import ExperimentCounts, ExperimentStage
from db.experiments.experiments import Decision, Experiment, NewDecision, NewExperiment


class FakeExperimentRepository:
    """Experiments and their decisions, by the rules of the stored ones; `counted` is what their arms did."""

    def __init__(self) -> None:
        self.experiments: dict[UUID, Experiment] = {}
        self.decided: dict[UUID, list[Decision]] = {}
        self.counted: dict[UUID, ExperimentCounts] = {}

    async def create(self, new: NewExperiment, *, actor: UUID | None) -> Experiment:
        """Start one."""
        if any(each.running and each.model == new.model for each in self.experiments.values()):
            raise Duplicate(f"an experiment of {new.model!r} is running already: stop it first")
        now = datetime.now(UTC)
        made = Experiment(
            id=uuid4(),
            model=new.model,
            champion=new.champion,
            challenger=new.challenger,
            share=new.share,
            shadow=new.shadow,
            salt=new.salt,
            stage=1,
            state="running",
            reason=None,
            policy=dict(new.policy),
            created_at=now,
            updated_at=now,
            stopped_at=None,
        )
        self.experiments[made.id] = made
        return made

    async def get(self, experiment_id: UUID) -> Experiment:
        """One of them."""
        if experiment_id not in self.experiments:
            raise NotFound(f"there is no experiment {experiment_id}")
        return self.experiments[experiment_id]

    async def list(self, *, running: bool = False, limit: int = 100) -> tuple[Experiment, ...]:
        """Newest first."""
        found = [each for each in self.experiments.values() if each.running or not running]
        return tuple(found[::-1][:limit])

    async def change(
        self,
        experiment_id: UUID,
        *,
        actor: UUID | None,
        share: float | None = None,
        policy: Mapping[str, Any] | None = None,
        decision: NewDecision | None = None,
        stage: int | None = None,
    ) -> Experiment:
        """Set share and policy."""
        now = await self._running(experiment_id, stage)
        if decision is not None:
            self._keep(now, decision)
        changed = replace(now, policy=dict(policy or now.policy), updated_at=datetime.now(UTC))
        if share is not None and share != now.share:
            changed = replace(changed, share=share, stage=now.stage + 1)
        self.experiments[experiment_id] = changed
        return changed

    async def decide(self, experiment_id: UUID, decision: NewDecision, *, stage: int) -> None:
        """Store a decision that is about to be carried out."""
        self._keep(await self._running(experiment_id, stage), decision)

    async def stop(
        self,
        experiment_id: UUID,
        *,
        actor: UUID | None,
        reason: str,
        decision: NewDecision | None = None,
    ) -> Experiment:
        """Stop it."""
        now = await self.get(experiment_id)
        if not now.running:
            return now
        if decision is not None:
            self._keep(now, decision)
        stopped = replace(now, state="stopped", reason=reason, stopped_at=datetime.now(UTC))
        self.experiments[experiment_id] = stopped
        return stopped

    async def decisions(self, experiment_id: UUID) -> tuple[Decision, ...]:
        """What was decided, oldest first."""
        return tuple(self.decided.get(experiment_id, ()))

    async def counts(self, experiment_id: UUID) -> ExperimentCounts:
        """What the arms did: nothing, unless a test says otherwise."""
        now = await self.get(experiment_id)
        stages = [ExperimentStage(number=number, share=now.share) for number in range(1, now.stage + 1)]
        return self.counted.get(experiment_id, ExperimentCounts(stages=stages, arms=[]))

    async def _running(self, experiment_id: UUID, stage: int | None) -> Experiment:
        now = await self.get(experiment_id)
        if not now.running or stage not in (None, now.stage):
            raise Conflict(f"experiment {experiment_id} has stopped, or is in another stage")
        return now

    def _keep(self, now: Experiment, decision: NewDecision) -> None:
        kept = self.decided.setdefault(now.id, [])
        kept.append(
            Decision(
                id=len(kept) + 1,
                at=datetime.now(UTC),
                action=decision.action,
                verdict=decision.verdict,
                reason=decision.reason,
                share=decision.share,
                evidence=decision.evidence,
                policy=decision.policy,
                numbers=decision.numbers,
            )
        )
