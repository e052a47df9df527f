"""Experiments: a challenger beside the champion, from its start to the decision that ends it.

The same use cases for HTTP and the command line, and the judge that policies act through. Knows no HTTP and no SQL.
"""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

import structlog

from db.experiments.counts import ArmStageCounts, ExperimentCounts
from db.experiments.experiments import Decision, Experiment, NewDecision, NewExperiment
from registry.experiments import decisions
from registry.experiments.decisions import ArmCounts, Evidence, Stage
from registry.experiments.policies import Policy
from registry.experiments.statistics import ArmFeedback
from serving.core.caller import Caller
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict, ServingError
from serving.predictions.routing import Arm, Split, Traffic

log = structlog.get_logger(__name__)

_SALT_BYTES = 16


class ExperimentRecords(Protocol):
    """The stored experiments."""

    async def create(self, new: NewExperiment, *, actor: UUID | None) -> Experiment:
        """Start one."""

    async def get(self, experiment_id: UUID) -> Experiment:
        """One of them."""

    async def list(self, *, running: bool = False, limit: int = 100) -> tuple[Experiment, ...]:
        """Newest first."""

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

    async def decide(self, experiment_id: UUID, decision: NewDecision, *, stage: int) -> None:
        """Store a decision that is about to be carried out."""

    async def stop(
        self, experiment_id: UUID, *, actor: UUID | None, reason: str, decision: NewDecision | None = None
    ) -> Experiment:
        """Stop it."""

    async def decisions(self, experiment_id: UUID) -> tuple[Decision, ...]:
        """What was decided."""


class EvidenceRecords(Protocol):
    """What the arms did."""

    async def counts(self, experiment_id: UUID) -> ExperimentCounts:
        """Counts by stage and arm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentReport:
    """An experiment with what its arms did, what follows from that, and what was decided."""

    experiment: Experiment
    counts: ExperimentCounts
    finding: decisions.PolicyDecision
    decided: Sequence[Decision]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentPlan:
    """An experiment as an engineer asks for it."""

    model: str
    challenger: str
    share: float
    shadow: bool = False
    policy: Policy = field(default_factory=Policy)


Measure = Callable[[str, str, Caller], Awaitable[object]]


class ExperimentService:
    """One experiment of a model runs at a time, and its champion is the model's.

    Args:
        measure: has a version evaluated, so that the gates know it by the time a policy wants to promote it.
    """

    def __init__(
        self,
        records: ExperimentRecords,
        evidence: EvidenceRecords,
        catalog: Callable[[], Catalog],
        measure: Measure,
    ) -> None:
        self._records = records
        self._evidence = evidence
        self._catalog = catalog
        self._measure = measure

    async def start(self, asked: ExperimentPlan, caller: Caller) -> ExperimentReport:
        """Try a challenger; its replicas start if they don't run, and it answers once they are warm.

        Raises:
            NotFound: no such model or version.
            Conflict: one of this model runs, or the challenger is the champion.
        """
        catalog = self._catalog()
        champion = catalog.champion(asked.model)
        challenger = catalog.entry(asked.model, asked.challenger).record
        if challenger.version == champion.version:
            raise Conflict(f"version {champion.version} is the champion: name another one as challenger")
        new = NewExperiment(
            model=asked.model,
            champion=champion.version,
            challenger=challenger.version,
            share=asked.share,
            shadow=asked.shadow,
            salt=secrets.token_hex(_SALT_BYTES),
            policy=asked.policy.dump(),
        )
        with translate_database_errors():
            made = await self._records.create(new, actor=caller.key_id)
        if asked.policy.action == "decide":
            try:
                await self._measure(asked.model, asked.challenger, caller)
            except ServingError as error:
                # The experiment runs all the same; without a report its promotion would be refused, saying so.
                log.warning("experiment.unmeasured", experiment=str(made.id), error=str(error))
        return await self.get(made.id)

    async def list(self) -> Sequence[Experiment]:
        """All experiments, newest first."""
        with translate_database_errors():
            return await self._records.list()

    async def get(self, experiment_id: UUID) -> ExperimentReport:
        """One experiment, counted now.

        Raises:
            NotFound: there is none with this id.
        """
        with translate_database_errors():
            found = await self._records.get(experiment_id)
            counts = await self._evidence.counts(experiment_id)
            decided = await self._records.decisions(experiment_id)
        finding = decisions.decide(evidence_of(found, counts), Policy.parse(found.policy))
        return ExperimentReport(experiment=found, counts=counts, finding=finding, decided=decided)

    async def change(
        self,
        experiment_id: UUID,
        caller: Caller,
        *,
        share: float | None = None,
        policy: Policy | None = None,
    ) -> ExperimentReport:
        """Set the share, of which units that must move do, or the policy.

        Raises:
            NotFound: there is none with this id.
            Conflict: it has stopped.
        """
        wanted = None if policy is None else policy.dump()
        with translate_database_errors():
            await self._records.change(experiment_id, actor=caller.key_id, share=share, policy=wanted)
        return await self.get(experiment_id)

    async def stop(self, experiment_id: UUID, caller: Caller, reason: str | None = None) -> ExperimentReport:
        """Leave everything to the champion; a stopped experiment stays as it is.

        Raises:
            NotFound: there is none with this id.
        """
        with translate_database_errors():
            await self._records.stop(
                experiment_id, actor=caller.key_id, reason=reason or "stopped by an engineer"
            )
        return await self.get(experiment_id)


def traffic_of(experiments: Sequence[Experiment]) -> Traffic:
    """The splits of the experiments that run."""
    return Traffic(
        splits={
            each.model: Split(
                experiment_id=each.id,
                stage=each.stage,
                champion=each.champion,
                challenger=each.challenger,
                share=each.share,
                salt=each.salt,
                shadow=each.shadow,
            )
            for each in experiments
            if each.running
        }
    )


def evidence_of(experiment: Experiment, counts: ExperimentCounts) -> Evidence:
    """The counts as the statistics take them: a shadow's arm is the challenger, and splits nobody."""
    arm = Arm.SHADOW if experiment.shadow else Arm.CHALLENGER
    splits = not experiment.shadow
    return Evidence(
        stages=tuple(
            Stage(
                share=stage.share,
                champion=_arm(counts.of(stage.number, Arm.CHAMPION), splits=splits),
                challenger=_arm(counts.of(stage.number, arm), splits=splits),
            )
            for stage in counts.stages
        )
    )


def _arm(row: ArmStageCounts, *, splits: bool) -> ArmCounts:
    return ArmCounts(
        units=row.units,
        new_units=row.new_units if splits else 0,
        answered=row.answered,
        faults=row.faults,
        p95_ms=row.p95_ms,
        feedback=ArmFeedback(units=row.judged, total=row.total, squares=row.squares),
    )
