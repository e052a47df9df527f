"""The history of champions: the changes that were intended and made, and each version's time as champion.

A change is intended in one transaction and ended in another, each under the model's lock, which ends with the
process that holds it. Never moves an alias: the holder of the lock does.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import Double, Row, Select, and_, func, insert, or_, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from db.accounts import audit
from db.connection.repository import Repository
from db.core.cursors import Page, cut_page, decode_row_id, encode_row_id
from db.core.rows import columns_of, values_of
from db.errors import Contested
from db.schema import tables

_P, _E = tables.PromotionRow, tables.ExperimentRow
_LOCK: Final = 0x50524F4D
# While MLflow stalls, the session idles: if PostgreSQL ended it, another change could begin before this one's move.
_WAIT_FOR_REGISTRY: Final = text("SET LOCAL idle_in_transaction_session_timeout = 0")


class Act(StrEnum):
    """The cause of a change. `EXTERNAL`: another MLflow client. `BOOTSTRAP`: the first champion that was seen."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    EXTERNAL = "external"
    POLICY = "policy"
    BOOTSTRAP = "bootstrap"


class PromotionPhase(StrEnum):
    """The phase of a change."""

    INTENDED = "intended"
    DONE = "done"
    ABANDONED = "abandoned"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionFields:
    """A change of a model's champion; `below_id` is the change whose champion this one covers.

    `actor` is the key of the request, None the platform; `gated`: it passed the gates; `forced`: it needn't.
    """

    model: str
    version_from: str | None
    version_to: str | None
    forced: bool = False
    gated: bool = False
    actor: UUID | None = None
    reason: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    below_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPromotion(PromotionFields):
    """A change to be recorded."""

    act: Act


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyExperiment:
    """An experiment whose policy, as it is given here, has decided to promote."""

    id: UUID
    policy: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion(PromotionFields):
    """A recorded change. `at`: when it was intended or seen; `settled_at`: when it ended; `age`: seconds since `at`."""

    id: int
    act: str
    state: str
    at: datetime
    settled_at: datetime | None
    age: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionState:
    """The change that made a model's champion, and the one that is under way."""

    champion: Promotion | None
    intended: Promotion | None

    @property
    def version(self) -> str | None:
        """The champion's version."""
        return self.champion.version_to if self.champion is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionPeriod:
    """A champion's time: from the change that made it until the next one; None while it lasts."""

    promotion: Promotion
    until: datetime | None


ChampionPeriodPage: TypeAlias = Page[ChampionPeriod]
_COLUMNS = (
    *columns_of(_P, Promotion),
    func.extract("epoch", func.clock_timestamp() - _P.at).cast(Double).label("age"),
)


class LockedHistory:
    """The history of one model under its lock: no other change is recorded until the transaction ends."""

    def __init__(self, connection: AsyncConnection, model: str) -> None:
        self._connection = connection
        self._model = model

    async def state(self) -> PromotionState:
        """Return the model's champion and the change under way."""
        return await _state(self._connection, self._model)

    async def confirm(self) -> None:
        """Raise Unavailable if the lock was lost, because its session has ended."""
        await self._connection.execute(select(1))

    async def require_experiment(self, experiment: PolicyExperiment) -> None:
        """Keep an experiment as it is until the transaction ends.

        Raises Contested if it has stopped, or has another policy by now.
        """
        query = select(_E.state, _E.policy).where(_E.id == experiment.id).with_for_update(read=True)
        row = (await self._connection.execute(query)).one_or_none()
        require_deciding(experiment, row.state if row else None, row.policy if row else None)

    async def intend(self, new: NewPromotion) -> Promotion:
        """Record a change that is about to be made."""
        return await _insert(self._connection, new, PromotionPhase.INTENDED)

    async def finish(self, promotion: Promotion, phase: PromotionPhase, *, why: str | None = None) -> None:
        """End an intended change, once. Raises Contested if it has ended already."""
        ended = (
            update(_P)
            .where(_P.id == promotion.id, _P.state == PromotionPhase.INTENDED)
            .values(state=phase, settled_at=func.clock_timestamp())
        )
        if not (await self._connection.execute(ended)).rowcount:
            raise Contested(f"change {promotion.id} of {self._model!r} has ended already")
        act = promotion.act if phase is PromotionPhase.DONE else "abandon"
        await self._audit(act, promotion, {"why": why} if why else {})

    async def record(self, new: NewPromotion) -> Promotion:
        """Add a change that has happened already."""
        promotion = await _insert(self._connection, new, PromotionPhase.DONE)
        await self._audit(promotion.act, promotion, {})
        return promotion

    async def _audit(self, act: str, change: Promotion, more: Mapping[str, Any]) -> None:
        await audit.append(
            self._connection,
            actor=change.actor,
            action=f"champion.{act}",
            subject=self._model,
            detail={
                "promotion": change.id,
                "from": change.version_from,
                "to": change.version_to,
                "forced": change.forced,
                "gated": change.gated,
                "reason": change.reason,
                "evidence": dict(change.evidence),
                **more,
            },
        )


class PromotionRepository(Repository):
    """Changes are recorded in the order in which they happened; a change that has ended never changes again."""

    async def state(self, model: str) -> PromotionState:
        """Return a model's champion and the change under way."""
        async with self._database.begin() as connection:
            return await _state(connection, model)

    async def get(self, promotion_id: int) -> Promotion:
        """Return one change. Raises NotFound if there is none."""
        query = select(*_COLUMNS).where(_P.id == promotion_id)
        return await self._get(Promotion, query, f"there is no promotion {promotion_id}")

    async def of_experiment(self, experiment_id: UUID) -> Promotion | None:
        """Return the promotion that an experiment's policy has made, None if it has made none."""
        query = select(*_COLUMNS).where(
            _P.act == Act.POLICY,
            _P.state == PromotionPhase.DONE,
            _P.evidence["experiment"].astext == str(experiment_id),
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(query.order_by(_P.id).limit(1))).one_or_none()
        return Promotion(**row._mapping) if row is not None else None

    async def champion_at(self, model: str, moment: datetime) -> ChampionPeriod | None:
        """Return the period that the moment lies in; None before the first champion."""
        latest = _select_periods(model).where(_P.at <= moment).order_by(_P.at.desc(), _P.id.desc()).limit(1)
        async with self._database.begin() as connection:
            row = (await connection.execute(latest)).one_or_none()
        return _to_period(row) if row is not None else None

    async def intend(self, new: NewPromotion, *, after: int | None) -> Promotion:
        """Record a change that is about to be made; `after` is the change that was the last when it was decided.

        Raises Contested if another change is under way, or was made meanwhile; the message names it and its actor.
        """
        async with self.lock(new.model) as history:
            state = await history.state()
            if state.intended is not None:
                raise Contested(f"another change is under way: {describe(state.intended)}")
            if state.champion is not None and state.champion.id != after:
                raise Contested(f"another change came first: {describe(state.champion)}")
            return await history.intend(new)

    @asynccontextmanager
    async def lock(self, model: str) -> AsyncIterator[LockedHistory]:
        """Hold the model's lock, in a transaction that commits at the end of the block.

        The lock ends with the transaction, so with a process that dies, and it works through a transaction pooler.
        """
        async with self._database.begin() as connection:
            await connection.execute(_WAIT_FOR_REGISTRY)
            await connection.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(model))))
            yield LockedHistory(connection, model)

    @asynccontextmanager
    async def try_lock(self, model: str) -> AsyncIterator[LockedHistory | None]:
        """Hold the model's lock like `lock`, but yield None at once if another process holds it."""
        async with self._database.begin() as connection:
            await connection.execute(_WAIT_FOR_REGISTRY)
            lock = select(func.pg_try_advisory_xact_lock(_LOCK, func.hashtext(model)))
            locked = (await connection.execute(lock)).scalar_one()
            yield LockedHistory(connection, model) if locked else None

    async def record_refusal(
        self, model: str, version: str, *, actor: UUID | None, why: str, evidence: Mapping[str, Any]
    ) -> None:
        """Record in the audit log that a change was refused."""
        async with self._database.begin() as connection:
            await audit.append(
                connection,
                actor=actor,
                action="champion.refuse",
                subject=model,
                detail={"to": version, "why": why, "evidence": dict(evidence)},
            )

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ChampionPeriodPage:
        """Return a page of the model's champions, newest first. Raises Rejected if no page gave this cursor."""
        query = _select_periods(model)
        if cursor is not None:
            query = query.where(_P.id < decode_row_id(cursor))
        async with self._database.begin() as connection:
            rows = (await connection.execute(query.order_by(_P.id.desc()).limit(limit + 1))).all()
        periods = [_to_period(row) for row in rows]
        return cut_page(periods, limit, lambda period: encode_row_id(period.promotion.id))


def describe(change: Promotion) -> str:
    """Return one line that says who made the change, and when."""
    actor = f"key {change.actor}" if change.actor is not None else "the platform"
    at = change.at.isoformat(timespec="seconds")
    return f"{change.act} from version {change.version_from} to {change.version_to} by {actor} at {at}"


def require_deciding(
    experiment: PolicyExperiment, state: str | None, policy: Mapping[str, Any] | None
) -> None:
    """Raise Contested unless an experiment of this state and policy runs under the policy that decided."""
    if state != "running":
        raise Contested(f"experiment {experiment.id} was stopped meanwhile")
    if policy != experiment.policy:
        raise Contested(f"experiment {experiment.id} was given another policy meanwhile")


async def _insert(connection: AsyncConnection, new: NewPromotion, phase: PromotionPhase) -> Promotion:
    settled_at = None if phase is PromotionPhase.INTENDED else func.clock_timestamp()
    values = values_of(new) | {"state": phase, "settled_at": settled_at}
    row = (await connection.execute(insert(_P).values(values).returning(*_COLUMNS))).one()
    return Promotion(**row._mapping)


async def _state(connection: AsyncConnection, model: str) -> PromotionState:
    latest = _select_done(model, _P.id).order_by(_P.at.desc(), _P.id.desc()).limit(1).scalar_subquery()
    intended = and_(_P.model == model, _P.state == PromotionPhase.INTENDED)
    rows = await connection.execute(select(*_COLUMNS).where(or_(_P.id == latest, intended)))
    changes = {row.state: Promotion(**row._mapping) for row in rows}
    return PromotionState(
        champion=changes.get(PromotionPhase.DONE), intended=changes.get(PromotionPhase.INTENDED)
    )


def _select_periods(model: str) -> Select[*tuple[Any, ...]]:
    """Select the changes that made a champion, each with the time of the next one."""
    later = aliased(_P)
    until = (
        select(later.at)
        .where(later.model == model, later.state == PromotionPhase.DONE)
        .where(tuple_(later.at, later.id) > tuple_(_P.at, _P.id))
        .order_by(later.at, later.id)
        .limit(1)
        .correlate(_P)
        .scalar_subquery()
    )
    return _select_done(model, *_COLUMNS, until.label("until"))


def _to_period(row: Row[*tuple[Any, ...]]) -> ChampionPeriod:
    values = dict(row._mapping)
    return ChampionPeriod(until=values.pop("until"), promotion=Promotion(**values))


def _select_done(model: str, *columns: Any) -> Select[*tuple[Any, ...]]:
    return select(*columns).where(_P.model == model, _P.state == PromotionPhase.DONE)
