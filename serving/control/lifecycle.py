"""The lifecycle of versions as the API sees it: evaluation, promotion, rollback, history; and a space's encoder.

All of it happens in one process, the control, which holds the registry.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from db.errors import DatabaseError
from db.experiments.experiments import Experiment
from db.models.evaluations import Evaluation
from db.models.promotions import Act, ChampionPeriod, ChampionPeriodPage, PolicyExperiment
from registry.errors import NotRegistered
from registry.experiments.decisions import PolicyDecision
from registry.store.records import EncoderRecord, VersionRecord
from serving.core.caller import Caller
from serving.core.registry_errors import call_registry
from serving.errors import NotFound
from serving.models.evaluation_queue import EvaluationQueue
from serving.models.promotion import PromotionDecision, PromotionOutcome, PromotionService, VersionDetail

if TYPE_CHECKING:
    from db.accounts.audit import AuditRepository
    from registry.store.model_registry import ModelRegistry


class Lifecycle(Protocol):
    """The lifecycle of versions as the API calls it: in the control's own process, or through a handle."""

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool, reason: str | None
    ) -> PromotionOutcome:
        """Make a version champion, as `PromotionService.promote` does."""

    async def rollback(self, model: str, caller: Caller, *, reason: str | None) -> PromotionOutcome:
        """Make the previous champion answer again, as `PromotionService.rollback` does."""

    async def history(self, model: str, *, limit: int, cursor: str | None) -> ChampionPeriodPage:
        """Return a page of a model's champions, newest first."""

    async def champion_at(self, model: str, moment: datetime) -> ChampionPeriod:
        """Return the champion's period that a moment lies in."""

    async def version(self, model: str, version: str) -> VersionDetail:
        """Return a version, its evaluations and the gates' present verdict."""

    async def evaluate(self, model: str, version: str, caller: Caller) -> Evaluation:
        """Queue an evaluation, as `EvaluationQueue.request` does."""

    async def space_encoder(self, space: str) -> EncoderRecord:
        """Return the encoder that defines an embedding space.

        Raises:
            NotFound: no registered encoder defines it.
            NotReady: the registry can't be used.
        """


# The methods of `Lifecycle`, which are all that a remote caller may call.
REMOTE_METHODS: Final = frozenset(
    {"promote", "rollback", "history", "champion_at", "version", "evaluate", "space_encoder"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalLifecycle:
    """The lifecycle in the control's process, which holds the registry; the reconciler and the policies use it, too."""

    promotions: PromotionService
    evaluations: EvaluationQueue
    registry: "ModelRegistry"
    audit: "AuditRepository"

    async def reconcile(self, model: str, champion: str | None) -> None:
        """Bring the history in line with the alias."""
        await self.promotions.reconcile(model, champion)

    async def failed(self, record: VersionRecord, reason: str) -> None:
        """Record in the audit log that a version can't answer, unless the database is away."""
        subject = f"{record.model}/{record.version}"
        with suppress(DatabaseError):
            await self.audit.add(action="version.fail", subject=subject, detail={"reason": reason})

    async def champions(self, model: str) -> Sequence[str]:
        """Return the versions that were champion, the latest first."""
        return await self.promotions.champions(model)

    async def promote_by_policy(self, experiment: Experiment, decision: PolicyDecision) -> None:
        """Promote an experiment's challenger as its policy decided, unless it has done so before.

        Raises:
            Conflict: a gate or another change forbids it, or the experiment was stopped or given another policy.
        """
        reason = PromotionDecision(
            act=Act.POLICY,
            reason=decision.reason,
            evidence={"decision": decision.dump(), "experiment": str(experiment.id)},
            experiment=PolicyExperiment(id=experiment.id, policy=experiment.policy),
        )
        await self.promotions.decide(experiment.model, experiment.challenger, reason)

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool, reason: str | None
    ) -> PromotionOutcome:
        """Implement `Lifecycle.promote`."""
        return await self.promotions.promote(model, version, caller, force=force, reason=reason)

    async def rollback(self, model: str, caller: Caller, *, reason: str | None) -> PromotionOutcome:
        """Implement `Lifecycle.rollback`."""
        return await self.promotions.rollback(model, caller, reason=reason)

    async def history(self, model: str, *, limit: int, cursor: str | None) -> ChampionPeriodPage:
        """Implement `Lifecycle.history`."""
        return await self.promotions.history(model, limit=limit, cursor=cursor)

    async def champion_at(self, model: str, moment: datetime) -> ChampionPeriod:
        """Implement `Lifecycle.champion_at`."""
        return await self.promotions.champion_at(model, moment)

    async def version(self, model: str, version: str) -> VersionDetail:
        """Implement `Lifecycle.version`."""
        return await self.promotions.version(model, version)

    async def evaluate(self, model: str, version: str, caller: Caller) -> Evaluation:
        """Implement `Lifecycle.evaluate`."""
        return await self.evaluations.request(model, version, caller.key_id)

    async def space_encoder(self, space: str) -> EncoderRecord:
        """Implement `Lifecycle.space_encoder`."""
        try:
            record = await call_registry(self.registry.space_encoder, space)
        except NotRegistered:
            record = None
        # MLflow has reserved names for versions, e.g. `latest`.
        if record is None or record.space != space:
            raise NotFound(f"no encoder defines the space {space!r}: `valence spaces register` adds one")
        return record
