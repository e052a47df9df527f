"""In-memory stand-ins for the borders of the control: the history of champions, the evaluations, the registry.

For tests without PostgreSQL or MLflow. They keep the promises of what they stand for, and nothing after the
process ends.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from db.accounts.audit import AuditEntry, AuditFilters, AuditPage
from db.core.cursors import decode_row_id, encode_row_id
from db.errors import Contested, NotFound, Rejected
from db.models.evaluations import Evaluation, NewEvaluation
from db.models.promotions import (
    ChampionPeriod,
    ChampionPeriodPage,
    NewPromotion,
    Promotion,
    PromotionPhase,
    PromotionState,
    describe,
)
from registry.errors import NotRegistered
from registry.store.records import EncoderRecord, VersionRecord


class FakeModelRegistry:
    """Versions and the alias `champion` of one model; `before` and `after` run around every move of it.

    `spaces` has the dimensions of each embedding space that an encoder defines.
    """

    def __init__(self, versions: Mapping[str, VersionRecord], champion: str | None) -> None:
        self.versions = dict(versions)
        self.champion = champion
        self.data: str | None = "d" * 64
        self.spaces: dict[str, int] = {}
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def champion_version(self, model: str) -> str | None:
        """The version that the alias names."""
        return self.champion

    def set_alias(self, model: str, alias: str, version: str) -> None:
        """Move it."""
        self.before()
        self.version(model, version)
        self.champion = version
        self.after()

    def version(self, model: str, version: str) -> VersionRecord:
        """One version."""
        if version not in self.versions:
            raise NotRegistered(f"{model} has no version {version}")
        return self.versions[version]

    def space_encoder(self, space: str) -> EncoderRecord:
        """The encoder that defines a space."""
        if space not in self.spaces:
            raise NotRegistered(f"no encoder defines {space}")
        return EncoderRecord(
            digest=space,
            bundle=space,
            name=space,
            space=space,
            dimensions=self.spaces[space],
            uri="file:///e",
        )

    def held_out_digest(self, model: str) -> str:
        """The set that versions are judged on."""
        if self.data is None:
            raise NotRegistered(f"there is no held-out set for {model!r}")
        return self.data


class FakePromotionRepository:
    """A history of champions; `refusals` has what the audit log would say of those that were refused."""

    def __init__(self) -> None:
        self.rows: list[Promotion] = []
        self.refusals: list[tuple[str, UUID | None, str]] = []
        self.settled: list[str | None] = []
        self._lock = asyncio.Lock()

    async def state(self, model: str) -> PromotionState:
        """Where a model stands."""
        rows = [self._aged(row) for row in self.rows if row.model == model]
        done = [row for row in rows if row.state == PromotionPhase.DONE]
        intended = [row for row in rows if row.state == PromotionPhase.INTENDED]
        return PromotionState(
            champion=done[-1] if done else None, intended=intended[-1] if intended else None
        )

    async def get(self, promotion_id: int) -> Promotion:
        """One change."""
        if not 0 < promotion_id <= len(self.rows):
            raise NotFound(f"there is no promotion {promotion_id}")
        return self.rows[promotion_id - 1]

    async def champion_at(self, model: str, moment: datetime) -> ChampionPeriod | None:
        """Return the period that the moment lies in."""
        periods = (await self.history(model, limit=len(self.rows) + 1)).items
        return next((period for period in periods if period.promotion.at <= moment), None)

    async def intend(self, new: NewPromotion, *, after: int | None) -> Promotion:
        """Record what is about to be done."""
        standing = await self.state(new.model)
        if standing.intended is not None:
            raise Contested(f"another change is under way: {describe(standing.intended)}")
        if standing.champion is not None and standing.champion.id != after:
            raise Contested(f"another change came first: {describe(standing.champion)}")
        return self.add(new, PromotionPhase.INTENDED)

    @asynccontextmanager
    async def lock(self, model: str) -> AsyncIterator["FakeLockedHistory"]:
        """The lock; what was done under it is undone by an exception."""
        async with self._lock:
            kept = list(self.rows)
            try:
                yield FakeLockedHistory(self, model)
            except BaseException:
                self.rows = kept
                raise

    @asynccontextmanager
    async def try_lock(self, model: str) -> AsyncIterator["FakeLockedHistory | None"]:
        """The lock, if nobody holds it."""
        if self._lock.locked():
            yield None
            return
        async with self.lock(model) as held:
            yield held

    async def record_refusal(
        self,
        model: str,
        version: str,
        *,
        actor: UUID | None,
        why: str,
        evidence: Mapping[str, Any],
    ) -> None:
        """Note a refusal."""
        self.refusals.append((version, actor, why))

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ChampionPeriodPage:
        """A page of it."""
        if cursor is not None and not cursor.isdigit():
            raise Rejected("the cursor isn't one that an earlier page gave")
        done = [row for row in self.rows if row.model == model and row.state == PromotionPhase.DONE]
        ends = [row.at for row in done[1:]]
        reigns = [
            ChampionPeriod(promotion=row, until=until)
            for row, until in zip(done, [*ends, None], strict=False)
        ]
        older = [reign for reign in reversed(reigns) if cursor is None or reign.promotion.id < int(cursor)]
        more = len(older) > limit
        return ChampionPeriodPage(
            items=tuple(older[:limit]),
            next_cursor=str(older[limit - 1].promotion.id) if more else None,
        )

    def add(self, new: NewPromotion, state: PromotionPhase) -> Promotion:
        """A row."""
        now = datetime.now(UTC)
        row = Promotion(
            id=len(self.rows) + 1,
            model=new.model,
            version_from=new.version_from,
            version_to=new.version_to,
            act=new.act,
            state=state,
            forced=new.forced,
            gated=new.gated,
            actor=new.actor,
            reason=new.reason,
            evidence=dict(new.evidence),
            below_id=new.below_id,
            at=now,
            settled_at=None if state is PromotionPhase.INTENDED else now,
            age=0.0,
        )
        self.rows.append(row)
        return row

    def _aged(self, row: Promotion) -> Promotion:
        return replace(row, age=(datetime.now(UTC) - row.at).total_seconds())


class FakeLockedHistory:
    """The history under its lock."""

    def __init__(self, records: FakePromotionRepository, model: str) -> None:
        self._records = records
        self._model = model

    async def state(self) -> PromotionState:
        """Where the model stands."""
        return await self._records.state(self._model)

    async def finish(self, promotion: Promotion, state: PromotionPhase, *, why: str | None = None) -> None:
        """End an intended change."""
        place = promotion.id - 1
        row = self._records.rows[place]
        if row.state != PromotionPhase.INTENDED:
            raise Contested(f"change {promotion.id} has ended already")
        self._records.rows[place] = replace(row, state=state, settled_at=datetime.now(UTC))
        self._records.settled.append(why)

    async def record(self, new: NewPromotion) -> Promotion:
        """Add one that has happened."""
        return self._records.add(new, PromotionPhase.DONE)


class FakeEvaluationRepository:
    """Stored evaluations; whoever claims one works on it until it is ended."""

    def __init__(self) -> None:
        self.rows: dict[int, Evaluation] = {}

    async def request(self, new: NewEvaluation) -> Evaluation:
        """The one that runs, or a new one."""
        for row in self.rows.values():
            same = (row.bundle_digest, row.data_digest) == (new.bundle_digest, new.data_digest)
            if row.state == "running" and same:
                return row
        number = len(self.rows) + 1
        self.rows[number] = made = Evaluation(
            id=number,
            bundle_digest=new.bundle_digest,
            data_digest=new.data_digest,
            model=new.model,
            version=new.version,
            state="running",
            report=None,
            reason=None,
            requested_by=new.requested_by,
            attempts=0,
            created_at=datetime.now(UTC),
            seen_at=None,
            finished_at=None,
        )
        return made

    async def claim(self) -> Evaluation | None:
        """The oldest that nobody works on."""
        for number, row in sorted(self.rows.items()):
            if row.state == "running" and row.seen_at is None:
                self.rows[number] = replace(row, seen_at=datetime.now(UTC), attempts=row.attempts + 1)
                return self.rows[number]
        return None

    async def finish(self, evaluation_id: int, report: Mapping[str, Any]) -> bool:
        """Store its report."""
        return self._end(evaluation_id, state="done", report=dict(report))

    async def fail(self, evaluation_id: int, reason: str) -> bool:
        """End one without a report."""
        return self._end(evaluation_id, state="failed", reason=reason)

    async def find_report(self, bundle_digest: str, data_digest: str) -> Evaluation | None:
        """The latest with a report."""
        found = await self.list_of_bundle(bundle_digest)
        return next((row for row in found if row.state == "done" and row.data_digest == data_digest), None)

    async def list_of_bundle(self, bundle_digest: str, *, limit: int = 10) -> tuple[Evaluation, ...]:
        """Those of a bundle, newest first."""
        found = [row for _, row in sorted(self.rows.items()) if row.bundle_digest == bundle_digest]
        return tuple(found[::-1][:limit])

    def _end(self, evaluation_id: int, **changes: Any) -> bool:
        row = self.rows[evaluation_id]
        if row.state != "running":
            return False
        self.rows[evaluation_id] = replace(row, finished_at=datetime.now(UTC), **changes)
        return True


class FakeAuditRepository:
    """An audit log in a list: `add` stores an action of the platform, `append` one of a key."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    async def add(self, *, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Append an action of the platform itself."""
        self.append(None, action, subject, detail)

    def append(self, actor: UUID | None, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Append an entry."""
        self.entries.append(
            AuditEntry(
                id=len(self.entries) + 1,
                at=datetime.now(UTC),
                actor=actor,
                action=action,
                subject=subject,
                detail=dict(detail),
            )
        )

    async def list(
        self, filters: AuditFilters | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> AuditPage:
        """Return a page of the entries, newest first."""
        wanted = filters or AuditFilters()
        before = None if cursor is None else decode_row_id(cursor)
        rows = [
            entry
            for entry in reversed(self.entries)
            if (before is None or entry.id < before)
            and wanted.actor in (None, entry.actor)
            and wanted.action in (None, entry.action)
            and wanted.subject in (None, entry.subject)
            and (wanted.since is None or entry.at >= wanted.since)
            and (wanted.until is None or entry.at < wanted.until)
        ]
        cut = rows[:limit]
        return AuditPage(
            items=tuple(cut), next_cursor=encode_row_id(cut[-1].id) if len(rows) > limit else None
        )
