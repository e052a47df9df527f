"""The judge of experiments: carries out what their policies decide."""

from collections.abc import Awaitable, Callable

import structlog

from db.experiments.experiments import Decision, Experiment, NewDecision
from registry.experiments import decisions
from registry.experiments.decisions import Evidence
from registry.experiments.policies import Policy
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict, ServingError
from serving.experiments.service import EvidenceRecords, ExperimentRecords, evidence_of

log = structlog.get_logger(__name__)

Promote = Callable[[Experiment, decisions.PolicyDecision], Awaitable[None]]


class PolicyRunner:
    """Carries out what policies decide, each decision stored before its effect or with it, and once.

    Args:
        champion: the present champion of a model, None while there is none.
        promote: makes an experiment's challenger the champion; again if it was told before.
            Raises Conflict if a gate or somebody else stands in the way.
    """

    def __init__(
        self,
        records: ExperimentRecords,
        evidence: EvidenceRecords,
        champion: Callable[[str], str | None],
        promote: Promote,
    ) -> None:
        self._records = records
        self._evidence = evidence
        self._champion = champion
        self._promote = promote

    async def look(self) -> None:
        """Judge every running experiment once; a fault of one of them is none of the others."""
        with translate_database_errors():
            running = await self._records.list(running=True, limit=1000)
        for experiment in running:
            try:
                with translate_database_errors():
                    await self._judge(experiment)
            except ServingError as error:
                log.warning("experiment.postponed", experiment=str(experiment.id), error=str(error))

    async def _judge(self, experiment: Experiment) -> None:
        # Before the decisions are read: if another judge's promotion is what moved it, its decision is among them.
        champion = self._champion(experiment.model)
        pending = next(
            (each for each in await self._records.decisions(experiment.id) if each.action == "promote"), None
        )
        if pending is not None:
            # Decided, and interrupted: what was decided is done now.
            await self._carry_out(experiment, _again(pending))
            return
        if champion is None:
            return
        if champion != experiment.champion:
            reason = f"the champion became version {champion}"
            await self._records.stop(experiment.id, actor=None, reason=reason)
            return
        policy = Policy.parse(experiment.policy)
        if policy.action == "observe":
            return
        evidence = evidence_of(experiment, await self._evidence.counts(experiment.id))
        decision = decisions.decide(evidence, policy)
        stored = NewDecision(
            action=decision.action,
            verdict=decision.verdict,
            reason=decision.reason,
            share=decision.share,
            evidence=evidence.dump(),
            policy=policy.dump(),
            numbers=decision.numbers,
        )
        match decision.action:
            case "none":
                return
            case "ramp":
                await self._records.change(
                    experiment.id,
                    actor=None,
                    share=decision.share,
                    decision=stored,
                    stage=experiment.stage,
                )
            case "stop":
                await self._records.stop(experiment.id, actor=None, reason=decision.reason, decision=stored)
            case "promote":
                await self._records.decide(experiment.id, stored, stage=experiment.stage)
                await self._carry_out(experiment, decision)
        log.info("experiment.decided", experiment=str(experiment.id), action=decision.action)

    async def _carry_out(self, experiment: Experiment, decision: decisions.PolicyDecision) -> None:
        try:
            await self._promote(experiment, decision)
        except Conflict as error:
            reason = f"{decision.reason}; not promoted: {error}"
        else:
            reason = f"promoted: {decision.reason}"
        await self._records.stop(experiment.id, actor=None, reason=reason)


def _again(stored: Decision) -> decisions.PolicyDecision:
    """A stored decision, recomputed from what it was based on."""
    return decisions.decide(Evidence.parse(stored.evidence), Policy.parse(stored.policy))
