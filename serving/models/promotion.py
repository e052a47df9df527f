"""Promote a version, roll back to the champion before, and show versions and champions. Alone moves the alias.

Knows no HTTP and no SQL.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from uuid import UUID

import structlog

from db.errors import Contested
from db.models.evaluations import Evaluation, EvaluationRepository
from db.models.promotions import (
    Act,
    ChampionPeriod,
    ChampionPeriodPage,
    LockedHistory,
    NewPromotion,
    PolicyExperiment,
    Promotion,
    PromotionPhase,
    PromotionRepository,
    PromotionState,
)
from registry.errors import NotRegistered
from registry.evaluation.gates import GateReport, Gates
from registry.store.records import VersionRecord
from serving.core.caller import Caller
from serving.core.catalog import CHAMPION, Catalog, VersionState
from serving.core.database_errors import translate_database_errors
from serving.core.registry_errors import call_registry
from serving.errors import Conflict, Invalid, NotFound, NotReady, Problem, Refused
from serving.models.gating import GateRunner
from serving.models.history import GRACE_SECONDS, ChampionHistory

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry

log = structlog.get_logger(__name__)

T = TypeVar("T")

# From the check that the lock is held to the beginning of the move.
_MOVE_SECONDS: Final = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionOutcome:
    """The outcome of a promotion or a rollback; `changed` is False if the version was champion already.

    `report` is the result of the gates, None for a rollback.
    """

    model: str
    version: str
    version_from: str | None
    changed: bool
    promotion: Promotion | None
    report: GateReport | None


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionDetail:
    """A version, its evaluations, newest first, and the result that the gates would give now."""

    record: VersionRecord
    state: VersionState
    reason: str | None
    evaluations: tuple[Evaluation, ...]
    preview: GateReport


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionDecision:
    """A decision to change the champion: the act, the key that asks, the reason and the stored evidence.

    `experiment` is the one whose policy decided: it must still run under this policy when the alias moves, and it
    promotes once.
    """

    act: Act = Act.PROMOTE
    actor: UUID | None = None
    force: bool = False
    reason: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    experiment: PolicyExperiment | None = None


class PromotionService:
    """Every move of the alias is recorded once. Of two concurrent changes one is made, and the other is refused.

    Promotions, and moves by other MLflow clients, are put on a stack; a rollback takes the top one off and makes the
    champion below it champion again: a second rollback goes further down, never forward again.
    """

    def __init__(
        self,
        *,
        promotions: PromotionRepository,
        evaluations: EvaluationRepository,
        registry: "ModelRegistry",
        catalog: Callable[[], Catalog],
        gates: Gates | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._promotions = promotions
        self._evaluations = evaluations
        self._registry = registry
        self._catalog = catalog
        self._history = ChampionHistory(promotions=promotions, registry=registry, grace_seconds=grace_seconds)
        self._gates = GateRunner(
            evaluations=evaluations, registry=registry, catalog=catalog, gates=gates or Gates()
        )
        self._changes: set[asyncio.Future[Any]] = set()

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool = False, reason: str | None = None
    ) -> PromotionOutcome:
        """Make a version champion if it passes every gate by its stored report.

        Raises:
            NotFound: no such model or version.
            Invalid: `force` without a reason.
            Refused: the version can't be loaded, has no stored report, or fails a gate.
            Conflict: another change is under way or came first.
        """
        if force and not (reason and reason.strip()):
            raise Invalid(
                "a forced promotion needs a reason",
                [Problem(loc=("body", "reason"), message="say why the gates are to be passed over")],
            )
        return await self.decide(
            model, version, PromotionDecision(actor=caller.key_id, force=force, reason=reason)
        )

    async def decide(self, model: str, version: str, decision: PromotionDecision) -> PromotionOutcome:
        """Carry out a decision to promote; a policy gives `Act.POLICY` and its decision as evidence."""
        return await self._complete(self._promote(model, version, decision))

    async def rollback(self, model: str, caller: Caller, *, reason: str | None = None) -> PromotionOutcome:
        """Make the champion before this one champion again, without running the gates.

        Raises:
            NotFound: no such model.
            Refused: there is no champion before, it isn't registered any more, or it can't be loaded.
            Conflict: another change is under way or came first.
        """
        return await self.undo(model, PromotionDecision(act=Act.ROLLBACK, actor=caller.key_id, reason=reason))

    async def undo(self, model: str, decision: PromotionDecision) -> PromotionOutcome:
        """Carry out a decision to roll back; the act is always recorded as a rollback."""
        return await self._complete(self._rollback(model, decision))

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ChampionPeriodPage:
        """Return a page of the model's champions, newest first.

        Raises:
            NotFound: no such model.
            Invalid: the cursor is not from an earlier page.
        """
        self._catalog().versions(model)
        with translate_database_errors():
            return await self._promotions.history(model, limit=limit, cursor=cursor)

    async def champion_at(self, model: str, moment: datetime) -> ChampionPeriod:
        """Return the champion's period that a moment lies in.

        Raises:
            NotFound: no such model, or it had no champion then.
        """
        self._catalog().versions(model)
        with translate_database_errors():
            period = await self._promotions.champion_at(model, moment)
        if period is None or period.promotion.version_to is None:
            raise NotFound(f"model {model!r} had no champion at {moment.isoformat()}")
        return period

    async def champions(self, model: str) -> list[str]:
        """Return the recent champions of a model, the last one first; none for an unknown model."""
        with translate_database_errors():
            page = await self._promotions.history(model)
        versions = (period.promotion.version_to for period in page.items)
        return [version for version in versions if version is not None]

    async def version(self, model: str, version: str) -> VersionDetail:
        """Return a version with its evaluations and the result that the gates would give now.

        Raises:
            NotFound: no such model or version.
        """
        entry = self._catalog().entry(model, version)
        champion = await call_registry(self._registry.champion_version, model)
        preview = await self._gates.run(model, entry.record, champion)
        with translate_database_errors():
            evaluations = await self._evaluations.list_of_bundle(entry.record.digest)
        return VersionDetail(
            record=entry.record,
            state=entry.state,
            reason=entry.reason,
            evaluations=evaluations,
            preview=preview,
        )

    async def reconcile(self, model: str, champion: str | None) -> None:
        """Bring the history in line with the alias: `ChampionHistory.reconcile`."""
        await self._history.reconcile(model, champion)

    async def _promote(self, model: str, version: str, decision: PromotionDecision) -> PromotionOutcome:
        entry = self._catalog().entry(model, version)
        state = await self._history.state(model)
        champion = state.version
        if entry.state is VersionState.FAILED:
            await self._refuse(model, version, decision, f"version {version} can't answer: {entry.reason}")
        report = await self._gates.run(model, entry.record, champion)
        made = state.champion if champion == version else await self._find_earlier(decision)
        if champion == version or made is not None:
            return PromotionOutcome(
                model=model,
                version=version,
                version_from=champion,
                changed=False,
                promotion=made,
                report=report,
            )
        if not report.passed and not decision.force:
            await self._refuse(model, version, decision, report.reason, report)
        new = NewPromotion(
            model=model,
            version_from=champion,
            version_to=version,
            act=decision.act,
            forced=decision.force,
            gated=report.passed,
            actor=decision.actor,
            reason=decision.reason,
            evidence={**decision.evidence, "gates": report.dump()},
            below_id=state.champion.id if state.champion is not None else None,
        )
        return await self._commit(new, state, report, decision.experiment)

    async def _find_earlier(self, decision: PromotionDecision) -> Promotion | None:
        """Return the promotion that this decision has led to already, though it may have been rolled back since."""
        if decision.experiment is None:
            return None
        with translate_database_errors():
            return await self._promotions.of_experiment(decision.experiment.id)

    async def _rollback(self, model: str, decision: PromotionDecision) -> PromotionOutcome:
        self._catalog().versions(model)
        state = await self._history.state(model)
        target = await self._history.find_below(state)
        if target is None or target.version_to is None:
            await self._refuse(model, None, decision, f"no version was champion of {model!r} before this one")
        version = target.version_to
        try:
            await call_registry(self._registry.version, model, version)
        except NotRegistered:
            await self._refuse(model, version, decision, f"version {version} isn't registered any more")
        entry = self._catalog().versions(model).get(version)
        if entry is not None and entry.state is VersionState.FAILED:
            await self._refuse(model, version, decision, f"version {version} can't answer: {entry.reason}")
        new = NewPromotion(
            model=model,
            version_from=state.version,
            version_to=version,
            act=Act.ROLLBACK,
            actor=decision.actor,
            reason=decision.reason,
            evidence=decision.evidence,
            below_id=target.below_id,
        )
        return await self._commit(new, state, None)

    async def _commit(
        self,
        new: NewPromotion,
        state: PromotionState,
        report: GateReport | None,
        experiment: PolicyExperiment | None = None,
    ) -> PromotionOutcome:
        """Store the intention, move the alias, finish. If this process dies meanwhile, `reconcile` finishes."""
        after = state.champion.id if state.champion is not None else None
        with translate_database_errors():
            intended = await self._promotions.intend(new, after=after)
            async with self._promotions.lock(new.model) as history:
                pending = (await history.state()).intended
                if pending is None or pending.id != intended.id:
                    raise Conflict("the change took too long to begin and was given up: try again")
                current = await call_registry(self._registry.champion_version, new.model)
                why = None
                if current != new.version_from:
                    why = f"another MLflow client made version {current} champion meanwhile"
                else:
                    why = await self._move_alias(history, new, experiment)
                await history.finish(
                    intended, PromotionPhase.ABANDONED if why else PromotionPhase.DONE, why=why
                )
        if why is not None:
            await self._history.reconcile(new.model, current)
            raise Conflict(f"{why}: look, and try again")
        log.info("champion.moved", model=new.model, act=new.act, version=new.version_to)
        with translate_database_errors():
            done = await self._promotions.get(intended.id)
        return PromotionOutcome(
            model=new.model,
            version=str(new.version_to),
            version_from=new.version_from,
            changed=True,
            promotion=done,
            report=report,
        )

    async def _move_alias(
        self, history: LockedHistory, new: NewPromotion, experiment: PolicyExperiment | None
    ) -> str | None:
        """Move the alias; return why it may not be moved, None if it was."""
        try:
            if experiment is not None:
                await history.require_experiment(experiment)
        except Contested as error:
            return str(error)
        # MLflow may have taken so long that the lock is lost.
        await history.confirm()
        move = partial(
            self._registry.set_alias, new.model, CHAMPION, str(new.version_to), seconds=_MOVE_SECONDS
        )
        try:
            await call_registry(move)
        except NotRegistered:
            return f"version {new.version_to} isn't registered any more"
        except NotReady:
            # Perhaps only the answer is missing.
            if await call_registry(self._registry.champion_version, new.model) != new.version_to:
                raise
        return None

    async def _refuse(
        self,
        model: str,
        version: str | None,
        decision: PromotionDecision,
        why: str,
        report: GateReport | None = None,
    ) -> NoReturn:
        """Record the refusal, then raise it."""
        content = report.dump() if report is not None else None
        evidence = {
            **decision.evidence,
            "act": decision.act,
            "force": decision.force,
            "reason": decision.reason,
            "gates": content,
        }
        with translate_database_errors():
            await self._promotions.record_refusal(
                model, version or "", actor=decision.actor, why=why, evidence=evidence
            )
        raise Refused(why, content)

    async def _complete(self, change: Coroutine[Any, Any, T]) -> T:
        """Run a change to its end, even if the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)
