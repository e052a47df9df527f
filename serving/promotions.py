"""Use cases of the champion: promote, roll back, who was it when; and the history kept true to the alias.

The alias in MLflow is the truth; the history follows it, whatever dies when. Knows no HTTP and no SQL.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn, Protocol, TypeVar
from uuid import UUID

import structlog

from db.errors import Contested
from db.evaluations import Evaluation
from db.promotions import Act, NewPromotion, Promotion, ReignPage, Standing, State, described
from registry.errors import NotRegistered, RegistryError, ReportInvalid
from registry.gates import GateReport, Gates, judge, unevaluated
from registry.records import VersionRecord
from registry.report import Report
from serving import catalogue as catalogues
from serving.caller import Caller
from serving.catalogue import Catalogue
from serving.errors import Conflict, Invalid, NotReady, Problem, Refused
from serving.gateway import reaching_the_database

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Between the intention and the lock nothing is done that takes time.
GRACE_SECONDS = 10.0


class HeldHistory(Protocol):
    """A model's history while nobody else can record a change."""

    async def standing(self) -> Standing:
        """Where the model stands."""

    async def settle(self, promotion: Promotion, state: State, *, why: str | None = None) -> None:
        """End an intended change."""

    async def record(self, new: NewPromotion) -> Promotion:
        """Add one that has happened."""


class PromotionRecords(Protocol):
    """The stored history of champions."""

    async def standing(self, model: str) -> Standing:
        """Where a model stands."""

    async def get(self, promotion_id: int) -> Promotion:
        """One change."""

    async def champion_at(self, model: str, moment: datetime) -> Promotion | None:
        """Who was champion, and why."""

    async def intend(self, new: NewPromotion, *, after: int | None) -> Promotion:
        """Record what is about to be done."""

    def holding(self, model: str) -> AbstractAsyncContextManager[HeldHistory]:
        """The model's lock."""
        ...

    def trying(self, model: str) -> AbstractAsyncContextManager[HeldHistory | None]:
        """The same, if nobody holds it."""
        ...

    async def refused(
        self, model: str, version: str, *, actor: UUID | None, why: str, evidence: Mapping[str, Any]
    ) -> None:
        """Note a refusal."""

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ReignPage:
        """A page of it."""


class Reports(Protocol):
    """The stored reports."""

    async def reported(self, bundle_digest: str, data_digest: str) -> Evaluation | None:
        """The latest of a bundle by a held-out set."""

    async def of_bundle(self, bundle_digest: str, *, limit: int = 10) -> tuple[Evaluation, ...]:
        """Those of a bundle, newest first."""


class Aliases(Protocol):
    """The registry, as promotion sees it; the calls block."""

    def champion_version(self, model: str) -> str | None:
        """The version that the alias names."""

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Move it."""

    def version(self, model: str, version: str) -> VersionRecord:
        """One version."""

    def held_out_digest(self, model: str) -> str:
        """The set that versions are judged on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
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
    state: catalogues.State
    reason: str | None
    evaluations: tuple[Evaluation, ...]
    preview: GateReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Why a champion is to change: who asks, by which act, for what reason, on what stored evidence."""

    act: Act = Act.PROMOTE
    actor: UUID | None = None
    force: bool = False
    reason: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Promotions:
    """Every move of the alias is recorded once; two at once through the platform are one, and the other is told.

    A rollback uncovers the champion under the present one: promotions, and moves by other MLflow clients, are laid on
    a stack, and a rollback takes the top off. So a second rollback goes further down, never forward again.
    """

    def __init__(
        self,
        *,
        records: PromotionRecords,
        reports: Reports,
        registry: Aliases,
        catalogue: Callable[[], Catalogue],
        gates: Gates | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._records = records
        self._reports = reports
        self._registry = registry
        self._catalogue = catalogue
        self._gates = gates or Gates()
        self._grace = grace_seconds
        self._changes: set[asyncio.Future[Any]] = set()

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool = False, reason: str | None = None
    ) -> Outcome:
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
        return await self.decide(model, version, Decision(actor=caller.key_id, force=force, reason=reason))

    async def decide(self, model: str, version: str, decision: Decision) -> Outcome:
        """As `promote`, for whatever decides: a policy gives `Act.POLICY` and its stored decision as evidence."""
        return await self._whole(self._promote(model, version, decision))

    async def rollback(self, model: str, caller: Caller, *, reason: str | None = None) -> Outcome:
        """Make the champion before this one answer again; no gate is asked.

        Raises:
            NotFound: no such model.
            Refused: there is none before it, or it isn't registered any more, or it can't be loaded.
            Conflict: somebody else's change is under way or came first.
        """
        return await self.undo(model, Decision(act=Act.ROLLBACK, actor=caller.key_id, reason=reason))

    async def undo(self, model: str, decision: Decision) -> Outcome:
        """As `rollback`, for whatever decides. Its act is always recorded as a rollback."""
        return await self._whole(self._rollback(model, decision))

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ReignPage:
        """Who was champion, newest first.

        Raises:
            NotFound: no such model.
            Invalid: the cursor isn't one that a page gave.
        """
        self._catalogue().versions(model)
        with reaching_the_database():
            return await self._records.history(model, limit=limit, cursor=cursor)

    async def champions(self, model: str) -> list[str]:
        """The versions that were champion of late, the last one first; none of a model that nobody knows."""
        with reaching_the_database():
            page = await self._records.history(model)
        reigns = (reign.promotion.version_to for reign in page.items)
        return [version for version in reigns if version is not None]

    async def version(self, model: str, version: str) -> VersionDetail:
        """A version with its evaluations, and what the gates would say of it now.

        Raises:
            NotFound: no such model or version.
        """
        entry = self._catalogue().entry(model, version)
        champion = await self._asked(self._registry.champion_version, model)
        preview = await self._judged(model, entry.record, champion)
        with reaching_the_database():
            evaluations = await self._reports.of_bundle(entry.record.digest)
        return VersionDetail(
            record=entry.record,
            state=entry.state,
            reason=entry.reason,
            evaluations=evaluations,
            preview=preview,
        )

    async def reconcile(self, model: str, champion: str | None) -> None:
        """Make the history say what the alias says: `champion` is what was seen of it.

        What was intended by a process that died is settled by where the alias is; a move by any other MLflow
        client is recorded once, as external. Costs one read while both agree. Safe with several at once.
        """
        await self._reconcile(model, champion, wait=False)

    async def _reconcile(self, model: str, champion: str | None, *, wait: bool) -> None:
        """`wait`: for another reconciler, but never for a change that is under way."""
        with reaching_the_database():
            standing = await self._records.standing(model)
            known = standing.champion is not None or champion is None
            if standing.intended is None and known and standing.version == champion:
                return
            lock = self._records.holding if wait and standing.intended is None else self._records.trying
            async with lock(model) as held:
                # Whoever holds the lock lives, and settles what it does itself.
                if held is not None:
                    await self._follow(held, model)

    async def _follow(self, held: HeldHistory, model: str) -> None:
        # Read again: under the lock no change of ours can come between this and what is recorded.
        champion = await self._asked(self._registry.champion_version, model)
        standing = await held.standing()
        intended = standing.intended
        if intended is not None:
            if champion == intended.version_to:
                await held.settle(intended, State.DONE, why="its process died after the alias moved")
            elif intended.age < self._grace:
                return
            else:
                await held.settle(intended, State.ABANDONED, why="its process died before the alias moved")
            standing = await held.standing()
        if standing.version == champion:
            return
        known = standing.champion
        made = await held.record(
            NewPromotion(
                model=model,
                version_from=standing.version,
                version_to=champion,
                act=Act.EXTERNAL if known is not None else Act.BOOTSTRAP,
                below_id=known.id if known is not None else None,
            )
        )
        log.info("champion.followed", model=model, act=made.act, version=champion)

    async def _promote(self, model: str, version: str, decision: Decision) -> Outcome:
        entry = self._catalogue().entry(model, version)
        standing = await self._true_standing(model)
        champion = standing.version
        if entry.state is catalogues.State.FAILED:
            await self._refuse(model, version, decision, f"version {version} can't answer: {entry.reason}")
        report = await self._judged(model, entry.record, champion)
        if champion == version:
            return Outcome(
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

    async def _rollback(self, model: str, decision: Decision) -> Outcome:
        self._catalogue().versions(model)
        standing = await self._true_standing(model)
        target = await self._below(standing)
        if target is None or target.version_to is None:
            await self._refuse(model, None, decision, f"no version was champion of {model!r} before this one")
        version = target.version_to
        try:
            await self._asked(self._registry.version, model, version)
        except NotRegistered:
            await self._refuse(model, version, decision, f"version {version} isn't registered any more")
        entry = self._catalogue().versions(model).get(version)
        if entry is not None and entry.state is catalogues.State.FAILED:
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

    async def _carry_out(self, new: NewPromotion, standing: Standing, report: GateReport | None) -> Outcome:
        """Intend, move, settle. Whatever dies in between, `reconcile` settles by the alias."""
        after = standing.champion.id if standing.champion is not None else None
        with reaching_the_database(), _contests():
            intended = await self._records.intend(new, after=after)
            async with self._records.holding(new.model) as held:
                now = (await held.standing()).intended
                if now is None or now.id != intended.id:
                    raise Conflict("the change took too long to begin and was given up: try again")
                seen = await self._asked(self._registry.champion_version, new.model)
                overtaken = seen != new.version_from
                missing = overtaken or not await self._moved(new)
                await held.settle(
                    intended,
                    State.ABANDONED if missing else State.DONE,
                    why="another MLflow client moved the alias"
                    if overtaken
                    else "the version isn't registered any more"
                    if missing
                    else None,
                )
        if overtaken:
            await self.reconcile(new.model, seen)
            raise Conflict(
                f"another MLflow client made version {seen} champion meanwhile: look, and try again"
            )
        if missing:
            raise Conflict(f"version {new.version_to} isn't registered any more")
        log.info("champion.moved", model=new.model, act=new.act, version=new.version_to)
        with reaching_the_database():
            done = await self._records.get(intended.id)
        return Outcome(
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
            await self._asked(self._registry.set_alias, new.model, catalogues.CHAMPION, str(new.version_to))
        except NotRegistered:
            return False
        return True

    async def _true_standing(self, model: str) -> Standing:
        """Where the model stands once the history says what the alias says."""
        champion = await self._asked(self._registry.champion_version, model)
        await self._reconcile(model, champion, wait=True)
        with reaching_the_database():
            standing = await self._records.standing(model)
        if standing.intended is not None:
            raise Conflict(f"another change is under way: {described(standing.intended)}")
        return standing

    async def _below(self, standing: Standing) -> Promotion | None:
        """The change under the present one that made another champion."""
        below = standing.champion
        with reaching_the_database():
            while below is not None and below.version_to in (None, standing.version):
                below = await self._records.get(below.below_id) if below.below_id is not None else None
        return below

    async def _judged(self, model: str, record: VersionRecord, champion: str | None) -> GateReport:
        """What the gates say by the stored reports."""
        try:
            data = await self._asked(self._registry.held_out_digest, model)
        except NotRegistered:
            return unevaluated(record.version, champion, {record.version: "the model has no held-out set"})
        wanted = {record.version: record.digest}
        if champion is not None and (digest := await self._digest_of(model, champion)) is not None:
            wanted[champion] = digest
        found = {version: await self._stored_report(digest, data) for version, digest in wanted.items()}
        ours, theirs = found[record.version], found.get(champion or "")
        if ours is None or None in found.values():
            missing = {
                version: await self._why_missing(wanted[version], data)
                for version, report in found.items()
                if report is None
            }
            return unevaluated(record.version, champion, missing)
        return judge(self._gates, ours, theirs if champion != record.version else None)

    async def _digest_of(self, model: str, version: str) -> str | None:
        """The bundle of a version, None if it is gone."""
        entry = self._catalogue().versions(model).get(version)
        if entry is not None:
            return entry.record.digest
        try:
            return (await self._asked(self._registry.version, model, version)).digest
        except NotRegistered:
            return None

    async def _why_missing(self, bundle: str, data: str) -> str:
        with reaching_the_database():
            last = next((e for e in await self._reports.of_bundle(bundle) if e.data_digest == data), None)
        if last is None:
            return "never evaluated: POST …/evaluate does it"
        if last.state == "failed":
            return f"its evaluation failed: {last.reason}"
        return "its evaluation runs" if last.state == "running" else "its report can't be read"

    async def _stored_report(self, bundle: str, data: str) -> Report | None:
        with reaching_the_database():
            found = await self._reports.reported(bundle, data)
        try:
            return Report.parse(found.report) if found is not None and found.report is not None else None
        except ReportInvalid:
            return None

    async def _refuse(
        self,
        model: str,
        version: str | None,
        decision: Decision,
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
        with reaching_the_database():
            await self._records.refused(
                model, version or "", actor=decision.actor, why=why, evidence=evidence
            )
        raise Refused(why, content)

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        """A change once begun is carried to its end, even if whoever asked for it has left."""
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _asked(self, call: Callable[..., T], *arguments: object) -> T:
        """What the registry says; NotRegistered is for the caller, anything else means that it can't be used."""
        try:
            return await asyncio.to_thread(call, *arguments)
        except NotRegistered:
            raise
        except RegistryError as error:
            raise NotReady(str(error), retry_after=2) from error


@contextmanager
def _contests() -> Iterator[None]:
    try:
        yield
    except Contested as error:
        raise Conflict(str(error)) from error
