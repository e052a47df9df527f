"""Fakes of the history of champions and of the evaluations."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from db.core.cursors import decode_row_id, encode_row_id
from db.errors import Contested, NotFound
from db.experiments.experiments import Experiment
from db.models.evaluations import Evaluation, NewEvaluation
from db.models.promotions import (
    Act,
    ChampionPeriod,
    ChampionPeriodPage,
    NewPromotion,
    PolicyExperiment,
    Promotion,
    PromotionPhase,
    PromotionState,
    describe,
    require_deciding,
)
from tests.fakes.store import FakeStore


class FakePromotionRepository:
    """The history of champions in memory; its audit log is that of a fake store."""

    def __init__(self, store: FakeStore, experiments: Mapping[UUID, Experiment] | None = None) -> None:
        self.store = store
        self.experiments = {} if experiments is None else experiments
        self.rows: list[Promotion] = []
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def state(self, model: str) -> PromotionState:
        """Return a model's champion and the change under way."""
        done = self._select(model, PromotionPhase.DONE)
        intended = self._select(model, PromotionPhase.INTENDED)
        return PromotionState(
            champion=done[-1] if done else None, intended=intended[-1] if intended else None
        )

    async def get(self, promotion_id: int) -> Promotion:
        """Return one change."""
        if not 0 < promotion_id <= len(self.rows):
            raise NotFound(f"there is no promotion {promotion_id}")
        return _with_age(self.rows[promotion_id - 1])

    async def of_experiment(self, experiment_id: UUID) -> Promotion | None:
        """Return the promotion that an experiment's policy has made."""
        for row in self.rows:
            made = (row.act, row.state) == (Act.POLICY, PromotionPhase.DONE)
            if made and row.evidence.get("experiment") == str(experiment_id):
                return _with_age(row)
        return None

    async def champion_at(self, model: str, moment: datetime) -> ChampionPeriod | None:
        """Return the period that the moment lies in."""
        periods = reversed(self._periods(model))
        return next((period for period in periods if period.promotion.at <= moment), None)

    async def intend(self, new: NewPromotion, *, after: int | None) -> Promotion:
        """Record a change that is about to be made."""
        async with self.lock(new.model):
            state = await self.state(new.model)
            if state.intended is not None:
                raise Contested(f"another change is under way: {describe(state.intended)}")
            if state.champion is not None and state.champion.id != after:
                raise Contested(f"another change came first: {describe(state.champion)}")
            return self.add(new, PromotionPhase.INTENDED)

    @asynccontextmanager
    async def lock(self, model: str) -> AsyncIterator["FakeLockedHistory"]:
        """Hold the model's lock; an exception undoes what was done under it."""
        async with self._locks[model]:
            rows, audit = list(self.rows), list(self.store.audit)
            try:
                yield FakeLockedHistory(self, model)
            except BaseException:
                self.rows, self.store.audit = rows, audit
                raise

    @asynccontextmanager
    async def try_lock(self, model: str) -> AsyncIterator["FakeLockedHistory | None"]:
        """Hold the model's lock, but yield None if it is held."""
        if self._locks[model].locked():
            yield None
            return
        async with self.lock(model) as history:
            yield history

    async def record_refusal(
        self, model: str, version: str, *, actor: UUID | None, why: str, evidence: Mapping[str, Any]
    ) -> None:
        """Record in the audit log that a change was refused."""
        detail = {"to": version, "why": why, "evidence": dict(evidence)}
        self.store.append(actor, "champion.refuse", model, detail)

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ChampionPeriodPage:
        """Return a page of the model's champions, newest first."""
        before = None if cursor is None else decode_row_id(cursor)
        periods = reversed(self._periods(model))
        older = [each for each in periods if before is None or each.promotion.id < before]
        items = tuple(older[:limit])
        return ChampionPeriodPage(
            items=items, next_cursor=encode_row_id(items[-1].promotion.id) if len(older) > limit else None
        )

    def add(self, new: NewPromotion, phase: PromotionPhase) -> Promotion:
        """Add a row."""
        now = datetime.now(UTC)
        row = Promotion(
            id=len(self.rows) + 1,
            model=new.model,
            version_from=new.version_from,
            version_to=new.version_to,
            act=new.act,
            state=phase,
            forced=new.forced,
            gated=new.gated,
            actor=new.actor,
            reason=new.reason,
            evidence=dict(new.evidence),
            below_id=new.below_id,
            at=now,
            settled_at=None if phase is PromotionPhase.INTENDED else now,
            age=0.0,
        )
        self.rows.append(row)
        return row

    def _periods(self, model: str) -> list[ChampionPeriod]:
        done = self._select(model, PromotionPhase.DONE)
        ends = [*(row.at for row in done[1:]), None]
        return [ChampionPeriod(promotion=row, until=until) for row, until in zip(done, ends, strict=False)]

    def _select(self, model: str, phase: PromotionPhase) -> list[Promotion]:
        return [_with_age(row) for row in self.rows if row.model == model and row.state == phase]


class FakeLockedHistory:
    """The history of one model under its lock."""

    def __init__(self, promotions: FakePromotionRepository, model: str) -> None:
        self._promotions = promotions
        self._model = model

    async def state(self) -> PromotionState:
        """Return the model's champion and the change under way."""
        return await self._promotions.state(self._model)

    async def confirm(self) -> None:
        """Do nothing: this lock is never lost."""

    async def require_experiment(self, experiment: PolicyExperiment) -> None:
        """Raise Contested if an experiment has stopped, or has another policy by now."""
        found = self._promotions.experiments.get(experiment.id)
        require_deciding(experiment, found.state if found else None, found.policy if found else None)

    async def finish(self, promotion: Promotion, phase: PromotionPhase, *, why: str | None = None) -> None:
        """End an intended change, once."""
        place = promotion.id - 1
        row = self._promotions.rows[place]
        if row.state != PromotionPhase.INTENDED:
            raise Contested(f"change {promotion.id} of {self._model!r} has ended already")
        self._promotions.rows[place] = replace(row, state=phase, settled_at=datetime.now(UTC))
        act = promotion.act if phase is PromotionPhase.DONE else "abandon"
        self._audit(act, promotion, {"why": why} if why else {})

    async def record(self, new: NewPromotion) -> Promotion:
        """Add a change that has happened already."""
        promotion = self._promotions.add(new, PromotionPhase.DONE)
        self._audit(promotion.act, promotion, {})
        return promotion

    def _audit(self, act: str, change: Promotion, more: Mapping[str, Any]) -> None:
        detail = {
            "promotion": change.id,
            "from": change.version_from,
            "to": change.version_to,
            "forced": change.forced,
            "gated": change.gated,
            "reason": change.reason,
            "evidence": dict(change.evidence),
            **more,
        }
        self._promotions.store.append(change.actor, f"champion.{act}", self._model, detail)


class FakeEvaluationRepository:
    """Evaluations in memory; no process that claims one ever dies."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.rows: dict[int, Evaluation] = {}

    async def request(self, new: NewEvaluation) -> Evaluation:
        """Return the running evaluation of this bundle on this set, or a new one."""
        for row in self.rows.values():
            same = (row.bundle_digest, row.data_digest) == (new.bundle_digest, new.data_digest)
            if row.state == "running" and same:
                return row
        number = len(self.rows) + 1
        self.rows[number] = Evaluation(
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
        detail = {"evaluation": number, "version": new.version, "bundle": new.bundle_digest}
        self._store.append(new.requested_by, "evaluation.request", new.model, detail)
        return self.rows[number]

    async def claim(self) -> Evaluation | None:
        """Claim the oldest request; None while another one is worked on."""
        running = [row for row in self.rows.values() if row.state == "running"]
        if not running or any(row.seen_at is not None for row in running):
            return None
        row = running[0]
        self.rows[row.id] = replace(row, seen_at=datetime.now(UTC), attempts=row.attempts + 1)
        return self.rows[row.id]

    async def finish(self, evaluation_id: int, report: Mapping[str, Any]) -> bool:
        """Store the report; return False if the evaluation had ended already."""
        return self._end(evaluation_id, state="done", report=dict(report))

    async def fail(self, evaluation_id: int, reason: str) -> bool:
        """End it without a report; return False if it had ended already."""
        return self._end(evaluation_id, state="failed", reason=reason)

    async def find_report(self, bundle_digest: str, data_digest: str) -> Evaluation | None:
        """Return the latest evaluation of a bundle on a set that has a report."""
        rows = await self.list_of_bundle(bundle_digest, limit=len(self.rows))
        return next((row for row in rows if row.state == "done" and row.data_digest == data_digest), None)

    async def list_of_bundle(self, bundle_digest: str, *, limit: int = 10) -> tuple[Evaluation, ...]:
        """Return the evaluations of a bundle on any set, newest first."""
        rows = [row for row in reversed(self.rows.values()) if row.bundle_digest == bundle_digest]
        return tuple(rows[:limit])

    def _end(self, evaluation_id: int, **changes: Any) -> bool:
        row = self.rows.get(evaluation_id)
        if row is None or row.state != "running":
            return False
        self.rows[evaluation_id] = replace(row, finished_at=datetime.now(UTC), **changes)
        return True


def _with_age(row: Promotion) -> Promotion:
    return replace(row, age=(datetime.now(UTC) - row.at).total_seconds())
