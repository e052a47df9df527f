"""Experiments: a challenger is tried next to the champion, from the start to the decision that ends it.

Knows no HTTP and no SQL.
"""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from db.experiments.counts import ArmStageCounts, CountRepository, ExperimentCounts
from db.experiments.experiments import Decision, Experiment, ExperimentRepository, NewExperiment
from registry.experiments.decisions import ArmCounts, Evidence, PolicyDecision, Stage, decide
from registry.experiments.policies import Policy
from registry.experiments.stages import conclude_stages, explain, find_known
from registry.experiments.statistics import ArmFeedback
from serving.core.caller import Caller
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict, ServingError
from serving.predictions.routing import Arm, Split, Traffic

log = structlog.get_logger(__name__)

_SALT_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentReport:
    """An experiment, the counts of its arms, the conclusions from them, and the decisions so far.

    `conclusions` are those of the stages; `known` is the latest that has enough feedback, and `explanation` says how
    to read it.
    """

    experiment: Experiment
    counts: ExperimentCounts
    conclusions: Sequence[PolicyDecision]
    known: PolicyDecision
    explanation: str
    decisions: Sequence[Decision]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentPlan:
    """An experiment as an engineer requests it."""

    model: str
    challenger: str
    share: float
    shadow: bool = False
    policy: Policy = field(default_factory=Policy)


Evaluate = Callable[[str, str, Caller], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class ExperimentService:
    """A model has at most one running experiment, and its champion is the model's champion.

    `evaluate` requests an evaluation of a version, so that the gates have a report when a policy promotes it.
    """

    experiments: ExperimentRepository
    counts: CountRepository
    catalog: Callable[[], Catalog]
    evaluate: Evaluate

    async def start(self, plan: ExperimentPlan, caller: Caller) -> ExperimentReport:
        """Start an experiment. The challenger's replicas start if they don't run; it answers once they are warm.

        Raises:
            NotFound: no such model or version.
            Conflict: an experiment of this model runs, or the challenger is the champion.
        """
        catalog = self.catalog()
        champion = catalog.champion(plan.model)
        challenger = catalog.entry(plan.model, plan.challenger).record
        if challenger.version == champion.version:
            raise Conflict(f"version {champion.version} is the champion: name another one as challenger")
        new = NewExperiment(
            model=plan.model,
            champion=champion.version,
            challenger=challenger.version,
            share=plan.share,
            shadow=plan.shadow,
            salt=secrets.token_hex(_SALT_BYTES),
            policy=plan.policy.dump(),
        )
        with translate_database_errors():
            experiment = await self.experiments.create(new, actor=caller.key_id)
        if plan.policy.action == "decide":
            try:
                await self.evaluate(plan.model, plan.challenger, caller)
            except ServingError as error:
                # The experiment runs even so; the gates refuse a promotion without a report, and say so.
                log.warning("experiment.unmeasured", experiment=str(experiment.id), error=str(error))
        return await self.get(experiment.id)

    async def list(self) -> Sequence[Experiment]:
        """Return all experiments, newest first."""
        with translate_database_errors():
            return await self.experiments.list()

    async def get(self, experiment_id: UUID) -> ExperimentReport:
        """Return an experiment with its present counts.

        Raises:
            NotFound: no such experiment.
        """
        with translate_database_errors():
            experiment = await self.experiments.get(experiment_id)
            counts = await self.counts.counts(experiment_id)
            stored = await self.experiments.decisions(experiment_id)
        policy = Policy.parse(experiment.policy)
        conclusions = conclude_stages(evidence_of(experiment, counts), policy)
        known = _find_final(experiment, stored) or find_known(conclusions, policy)
        return ExperimentReport(
            experiment=experiment,
            counts=counts,
            conclusions=conclusions,
            known=known,
            explanation=explain(known, policy),
            decisions=stored,
        )

    async def change(
        self, experiment_id: UUID, caller: Caller, *, share: float | None = None, policy: Policy | None = None
    ) -> ExperimentReport:
        """Set the share or the policy; with a new share, only the units that must change arms do.

        Raises:
            NotFound: no such experiment.
            Conflict: the experiment has stopped.
        """
        content = None if policy is None else policy.dump()
        with translate_database_errors():
            await self.experiments.change(experiment_id, actor=caller.key_id, share=share, policy=content)
        return await self.get(experiment_id)

    async def stop(self, experiment_id: UUID, caller: Caller, reason: str | None = None) -> ExperimentReport:
        """Stop an experiment, so that the champion answers everything; a stopped one stays as it is.

        Raises:
            NotFound: no such experiment.
        """
        with translate_database_errors():
            await self.experiments.stop(
                experiment_id, actor=caller.key_id, reason=reason or "stopped by an engineer"
            )
        return await self.get(experiment_id)


def _find_final(experiment: Experiment, stored: Sequence[Decision]) -> PolicyDecision | None:
    """Return the decision that ended an experiment, which feedback on its last answers doesn't undo."""
    if experiment.running or not stored or stored[-1].action not in ("promote", "stop"):
        return None
    return recompute(stored[-1])


def recompute(stored: Decision) -> PolicyDecision:
    """Compute a stored decision again from the evidence and the policy it was based on."""
    return decide(Evidence.parse(stored.evidence), Policy.parse(stored.policy))


def traffic_of(experiments: Sequence[Experiment]) -> Traffic:
    """Return the traffic splits of the running experiments."""
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
    """Return the counts as the statistics take them; a shadow counts as the challenger and splits no units."""
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
