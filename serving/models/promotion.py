"""Use cases of the champion: promote, roll back, show, and who was it when. The only place that moves the alias.

Knows no HTTP and no SQL.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar
from uuid import UUID

import structlog

from db.models.evaluations import Evaluation
from db.models.promotions import (
    Act,
    ChampionPeriodPage,
    NewPromotion,
    Promotion,
    PromotionPhase,
    PromotionState,
)
from registry.errors import NotRegistered
from registry.evaluation.gates import GateReport, Gates
from registry.store.records import VersionRecord
from serving.core.caller import Caller
from serving.core.catalog import CHAMPION, Catalog, VersionState
from serving.core.database_errors import translate_database_errors
from serving.core.registry_errors import call_registry
from serving.errors import Conflict, Invalid, Problem, Refused
from serving.models.gating import GateRunner, Reports, Sets
from serving.models.history import GRACE_SECONDS, Aliases, ChampionHistory, PromotionRecords

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionOutcome:
    """What a promotion or a rollback came to; `changed` is False if that version was champion already.

    `report` is what the gates say, None where none was asked.
    """

    model: str
    version: str
    version_from: str | None
    changed: bool
    promotion: Promotion | None
    report: GateReport | None


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionDetail:
    """A version, its evaluations, newest first, and what the gates would say now."""

    record: VersionRecord
    state: VersionState
    reason: str | None
    evaluations: tuple[Evaluation, ...]
    preview: GateReport


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionDecision:
    """Why a champion is to change: who asks, by which act, for what reason, on what stored evidence."""

    act: Act = Act.PROMOTE
    actor: UUID | None = None
    force: bool = False
    reason: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Registered(Aliases, Sets, Protocol):
    """The registry, as promotion sees it; the calls block."""

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Move it."""
        ...


class PromotionService:
    """Every move of the alias is recorded once; two at once through the platform are one, and the other is told.

    A rollback uncovers the champion under the present one: promotions, and moves by other MLflow clients, are laid on
    a stack, and a rollback takes the top off. So a second rollback goes further down, never forward again.
    """

    def __init__(
        self,
        *,
        records: PromotionRecords,
        reports: Reports,
        registry: Registered,
        catalog: Callable[[], Catalog],
        gates: Gates | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._records = records
        self._reports = reports
        self._registry = registry
        self._catalog = catalog
        self._chronicle = ChampionHistory(records=records, registry=registry, grace_seconds=grace_seconds)
        self._gatekeeper = GateRunner(reports=reports, registry=registry, catalog=catalog, gates=gates)
        self._changes: set[asyncio.Future[Any]] = set()

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool = False, reason: str | None = None
    ) -> PromotionOutcome:
        """Make a version champion, if every gate passes by the stored reports.

        Raises:
            NotFound: no such model or version.
            Invalid: `force` without a reason.
            Refused: it can't be loaded, has no stored report, or a gate fails.
            Conflict: somebody else's change is under way or came first.
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
        """As `promote`, for whatever decides: a policy gives `Act.POLICY` and its stored decision as evidence."""
        return await self._whole(self._promote(model, version, decision))

    async def rollback(self, model: str, caller: Caller, *, reason: str | None = None) -> PromotionOutcome:
        """Make the champion before this one answer again; no gate is asked.

        Raises:
            NotFound: no such model.
            Refused: there is none before it, or it isn't registered any more, or it can't be loaded.
            Conflict: somebody else's change is under way or came first.
        """
        return await self.undo(model, PromotionDecision(act=Act.ROLLBACK, actor=caller.key_id, reason=reason))

    async def undo(self, model: str, decision: PromotionDecision) -> PromotionOutcome:
        """As `rollback`, for whatever decides. Its act is always recorded as a rollback."""
        return await self._whole(self._rollback(model, decision))

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ChampionPeriodPage:
        """Who was champion, newest first.

        Raises:
            NotFound: no such model.
            Invalid: the cursor isn't one that a page gave.
        """
        self._catalog().versions(model)
        with translate_database_errors():
            return await self._records.history(model, limit=limit, cursor=cursor)

    async def champions(self, model: str) -> list[str]:
        """The versions that were champion of late, the last one first; none of a model that nobody knows."""
        with translate_database_errors():
            page = await self._records.history(model)
        reigns = (reign.promotion.version_to for reign in page.items)
        return [version for version in reigns if version is not None]

    async def version(self, model: str, version: str) -> VersionDetail:
        """A version with its evaluations, and what the gates would say of it now.

        Raises:
            NotFound: no such model or version.
        """
        entry = self._catalog().entry(model, version)
        champion = await call_registry(self._registry.champion_version, model)
        preview = await self._gatekeeper.judged(model, entry.record, champion)
        with translate_database_errors():
            evaluations = await self._reports.list_of_bundle(entry.record.digest)
        return VersionDetail(
            record=entry.record,
            state=entry.state,
            reason=entry.reason,
            evaluations=evaluations,
            preview=preview,
        )

    async def reconcile(self, model: str, champion: str | None) -> None:
        """`Chronicle.reconcile`, for whoever sees the alias."""
        await self._chronicle.reconcile(model, champion)

    async def _promote(self, model: str, version: str, decision: PromotionDecision) -> PromotionOutcome:
        entry = self._catalog().entry(model, version)
        standing = await self._chronicle.standing(model)
        champion = standing.version
        if entry.state is VersionState.FAILED:
            await self._refuse(model, version, decision, f"version {version} can't answer: {entry.reason}")
        report = await self._gatekeeper.judged(model, entry.record, champion)
        if champion == version:
            return PromotionOutcome(
                model=model,
                version=version,
                version_from=champion,
                changed=False,
                promotion=standing.champion,
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
            below_id=standing.champion.id if standing.champion is not None else None,
        )
        return await self._carry_out(new, standing, report)

    async def _rollback(self, model: str, decision: PromotionDecision) -> PromotionOutcome:
        self._catalog().versions(model)
        standing = await self._chronicle.standing(model)
        target = await self._chronicle.below(standing)
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
            version_from=standing.version,
            version_to=version,
            act=Act.ROLLBACK,
            actor=decision.actor,
            reason=decision.reason,
            evidence=decision.evidence,
            below_id=target.below_id,
        )
        return await self._carry_out(new, standing, None)

    async def _carry_out(
        self, new: NewPromotion, standing: PromotionState, report: GateReport | None
    ) -> PromotionOutcome:
        """Intend, move, settle. Whatever dies in between, `reconcile` settles by the alias."""
        after = standing.champion.id if standing.champion is not None else None
        with translate_database_errors():
            intended = await self._records.intend(new, after=after)
            async with self._records.lock(new.model) as held:
                now = (await held.state()).intended
                if now is None or now.id != intended.id:
                    raise Conflict("the change took too long to begin and was given up: try again")
                seen = await call_registry(self._registry.champion_version, new.model)
                why = None
                if seen != new.version_from:
                    why = f"another MLflow client made version {seen} champion meanwhile"
                elif not await self._moved(new):
                    why = f"version {new.version_to} isn't registered any more"
                await held.finish(intended, PromotionPhase.ABANDONED if why else PromotionPhase.DONE, why=why)
        if why is not None:
            await self._chronicle.reconcile(new.model, seen)
            raise Conflict(f"{why}: look, and try again")
        log.info("champion.moved", model=new.model, act=new.act, version=new.version_to)
        with translate_database_errors():
            done = await self._records.get(intended.id)
        return PromotionOutcome(
            model=new.model,
            version=str(new.version_to),
            version_from=new.version_from,
            changed=True,
            promotion=done,
            report=report,
        )

    async def _moved(self, new: NewPromotion) -> bool:
        """Moves the alias; False if the version is gone."""
        try:
            await call_registry(self._registry.set_alias, new.model, CHAMPION, str(new.version_to))
        except NotRegistered:
            return False
        return True

    async def _refuse(
        self,
        model: str,
        version: str | None,
        decision: PromotionDecision,
        why: str,
        report: GateReport | None = None,
    ) -> NoReturn:
        """Notes the refusal, then raises it."""
        content = report.dump() if report is not None else None
        evidence = {
            **decision.evidence,
            "act": decision.act,
            "force": decision.force,
            "reason": decision.reason,
            "gates": content,
        }
        with translate_database_errors():
            await self._records.record_refusal(
                model, version or "", actor=decision.actor, why=why, evidence=evidence
            )
        raise Refused(why, content)

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        """A change once begun is carried to its end, even if whoever asked for it has left."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)
