"""Carry out the decisions of the policies of running experiments."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from db.experiments.counts import CountRepository
from db.experiments.experiments import Decision, Experiment, ExperimentRepository, NewDecision
from registry.experiments import decisions
from registry.experiments.policies import Policy
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict, ServingError
from serving.experiments.service import evidence_of, recompute

log = structlog.get_logger(__name__)

Promote = Callable[[Experiment, decisions.PolicyDecision], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PolicyRunner:
    """Each decision is carried out once, and is stored before its effect or together with it.

    Args:
        champion: returns the present champion of a model, None while there is none.
        promote: makes an experiment's challenger the champion; harmless if it is champion already. Raises Conflict if
            a gate or another change forbids it.
    """

    experiments: ExperimentRepository
    counts: CountRepository
    champion: Callable[[str], str | None]
    promote: Promote

    async def run_once(self) -> None:
        """Apply the policy of every running experiment; an error in one of them doesn't stop the others."""
        with translate_database_errors():
            running = await self.experiments.list(running=True, limit=1000)
        for experiment in running:
            try:
                with translate_database_errors():
                    await self._apply_policy(experiment)
            except ServingError as error:
                log.warning("experiment.postponed", experiment=str(experiment.id), error=str(error))

    async def _apply_policy(self, experiment: Experiment) -> None:
        # Read before the decisions: if another runner's promotion moved the champion, its decision is among them.
        champion = self.champion(experiment.model)
        policy = Policy.parse(experiment.policy)
        pending = await self._find_pending(experiment, policy)
        if pending is not None:
            # The decision was stored, and the process died before it was carried out.
            await self._carry_out(experiment, recompute(pending))
            return
        if champion is None:
            return
        if champion != experiment.champion:
            reason = f"the champion became version {champion}"
            await self.experiments.stop(experiment.id, actor=None, reason=reason)
            return
        if policy.action == "observe":
            return
        evidence = evidence_of(experiment, await self.counts.counts(experiment.id))
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
                await self.experiments.change(
                    experiment.id, actor=None, share=decision.share, decision=stored, seen=experiment
                )
            case "stop":
                await self.experiments.stop(
                    experiment.id, actor=None, reason=decision.reason, decision=stored, seen=experiment
                )
            case "promote":
                await self.experiments.decide(experiment, stored)
                await self._carry_out(experiment, decision)
        log.info("experiment.decided", experiment=str(experiment.id), action=decision.action)

    async def _find_pending(self, experiment: Experiment, policy: Policy) -> Decision | None:
        """Return the decision to promote that the present policy has made; one of an earlier policy doesn't count."""
        made = await self.experiments.decisions(experiment.id)
        return next(
            (each for each in made if each.action == "promote" and Policy.parse(each.policy) == policy), None
        )

    async def _carry_out(self, experiment: Experiment, decision: decisions.PolicyDecision) -> None:
        try:
            await self.promote(experiment, decision)
        except Conflict as error:
            reason = f"{decision.reason}; not promoted: {error}"
            # Under a policy that came meanwhile it goes on.
            await self.experiments.stop(experiment.id, actor=None, reason=reason, seen=experiment)
        else:
            await self.experiments.stop(experiment.id, actor=None, reason=f"promoted: {decision.reason}")
