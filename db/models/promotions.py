"""The history of champions: what was intended, what was done, and which version was champion when.

A change is intended in one transaction and settled in another, each under the model's lock, which no process outlives.
Never moves an alias: whoever holds the lock does.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Select, and_, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from db.accounts import audit
from db.connection.engine import Database
from db.errors import Contested, NotFound, Rejected
from db.schema import tables

_P = tables.PromotionRow
_LOCK: Final = 0x50524F4D


class Act(StrEnum):
    """What moved the alias. `EXTERNAL`: some other MLflow client. `BOOTSTRAP`: the first champion that was seen."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    EXTERNAL = "external"
    POLICY = "policy"
    BOOTSTRAP = "bootstrap"


class PromotionPhase(StrEnum):
    """How far a change is."""

    INTENDED = "intended"
    DONE = "done"
    ABANDONED = "abandoned"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPromotion:
    """A change to be recorded; `below_id` is the change whose champion this one covers.

    `actor` is the key that asks, None the platform; `gated`: it passed the gates; `forced`: it didn't have to.
    """

    model: str
    version_from: str | None
    version_to: str | None
    act: Act
    forced: bool = False
    gated: bool = False
    actor: UUID | None = None
    reason: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    below_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """A recorded change. `at`: when it was intended, or seen; `settled_at`: when its end was known."""

    id: int
    model: str
    version_from: str | None
    version_to: str | None
    act: str
    state: str
    forced: bool
    gated: bool
    actor: UUID | None
    reason: str | None
    evidence: Mapping[str, Any]
    below_id: int | None
    at: datetime
    settled_at: datetime | None
    age: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionState:
    """Where a model stands: the change that made its champion, and the one that is under way."""

    champion: Promotion | None
    intended: Promotion | None

    @property
    def version(self) -> str | None:
        return self.champion.version_to if self.champion is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionPeriod:
    """A champion's time: from the change that made it until the next one, None while it lasts."""

    promotion: Promotion
    until: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionPeriodPage:
    """Some reigns, newest first, and the cursor that continues after them."""

    items: tuple[ChampionPeriod, ...]
    next_cursor: str | None


class LockedHistory:
    """A model's history while its lock is held: nobody else records a change until the transaction ends."""

    def __init__(self, connection: AsyncConnection, model: str) -> None:
        self._connection = connection
        self._model = model

    async def state(self) -> PromotionState:
        """Where the model stands."""
        return await _standing(self._connection, self._model)

    async def finish(self, promotion: Promotion, state: PromotionPhase, *, why: str | None = None) -> None:
        """Ends an intended change, once.

        Raises:
            Contested: it was settled already.
        """
        ended = (
            update(_P)
            .where(_P.id == promotion.id, _P.state == PromotionPhase.INTENDED)
            .values(state=state, settled_at=func.clock_timestamp())
        )
        if not (await self._connection.execute(ended)).rowcount:
            raise Contested(f"change {promotion.id} of {self._model!r} was settled already")
        act = promotion.act if state is PromotionPhase.DONE else "abandon"
        await self._note(act, promotion.id, promotion, {"why": why} if why else {})

    async def record(self, new: NewPromotion) -> Promotion:
        """Adds a change that has happened already."""
        made = await _insert(self._connection, new, PromotionPhase.DONE)
        await self._note(made.act, made.id, made, {})
        return made

    async def _note(self, act: str, number: int, change: Promotion, more: Mapping[str, Any]) -> None:
        await audit.append(
            self._connection,
            actor=change.actor,
            action=f"champion.{act}",
            subject=self._model,
            detail={
                "promotion": number,
                "from": change.version_from,
                "to": change.version_to,
                "forced": change.forced,
                "gated": change.gated,
                "reason": change.reason,
                "evidence": dict(change.evidence),
                **more,
            },
        )


class PromotionRepository:
    """Changes are recorded in the order in which they happened; what is settled never changes again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def state(self, model: str) -> PromotionState:
        """Where a model stands."""
        async with self._database.begin() as connection:
            return await _standing(connection, model)

    async def get(self, promotion_id: int) -> Promotion:
        """One change.

        Raises:
            NotFound: no such change.
        """
        async with self._database.begin() as connection:
            row = (await connection.execute(_selected().where(_P.id == promotion_id))).one_or_none()
        if row is None:
            raise NotFound(f"there is no promotion {promotion_id}")
        return Promotion(**row._mapping)

    async def champion_at(self, model: str, moment: datetime) -> Promotion | None:
        """The change that had made the champion of that moment, and with it why; None before the first."""
        latest = (
            _selected()
            .where(_P.model == model, _P.state == PromotionPhase.DONE, _P.at <= moment)
            .order_by(_P.at.desc(), _P.id.desc())
            .limit(1)
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(latest)).one_or_none()
        return Promotion(**row._mapping) if row is not None else None

    async def intend(self, new: NewPromotion, *, after: int | None) -> Promotion:
        """Records what is about to be done; `after` is the change that was the last when it was decided.

        Raises:
            Contested: another change is under way, or was done meanwhile; the message says whose and what.
        """
        async with self.lock(new.model) as held:
            standing = await held.state()
            if standing.intended is not None:
                raise Contested(f"another change is under way: {describe(standing.intended)}")
            last = standing.champion
            if last is not None and last.id != after:
                raise Contested(f"another change came first: {describe(last)}")
            return await _insert(held._connection, new, PromotionPhase.INTENDED)

    @asynccontextmanager
    async def lock(self, model: str) -> AsyncIterator[LockedHistory]:
        """The model's lock, in a transaction that commits at the end of the block.

        The lock goes with the transaction, and so with a process that dies; a transaction pooler may stand between.
        """
        async with self._database.begin() as connection:
            await connection.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(model))))
            yield LockedHistory(connection, model)

    @asynccontextmanager
    async def try_lock(self, model: str) -> AsyncIterator[LockedHistory | None]:
        """As `holding`, but None at once if somebody else holds it."""
        async with self._database.begin() as connection:
            wanted = select(func.pg_try_advisory_xact_lock(_LOCK, func.hashtext(model)))
            got = (await connection.execute(wanted)).scalar_one()
            yield LockedHistory(connection, model) if got else None

    async def record_refusal(
        self, model: str, version: str, *, actor: UUID | None, why: str, evidence: Mapping[str, Any]
    ) -> None:
        """Notes in the audit log that a change was refused."""
        async with self._database.begin() as connection:
            await audit.append(
                connection,
                actor=actor,
                action="champion.refuse",
                subject=model,
                detail={"to": version, "why": why, "evidence": dict(evidence)},
            )

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ChampionPeriodPage:
        """Who was champion, newest first.

        Raises:
            Rejected: the cursor isn't one that a page gave.
        """
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
        query = (
            _selected()
            .add_columns(until.label("until"))
            .where(_P.model == model, _P.state == PromotionPhase.DONE)
        )
        if cursor is not None:
            query = query.where(_P.id < _decoded(cursor))
        async with self._database.begin() as connection:
            rows = (await connection.execute(query.order_by(_P.id.desc()).limit(limit + 1))).all()
        items = []
        for row in rows[:limit]:
            values = dict(row._mapping)
            ended = values.pop("until")
            items.append(ChampionPeriod(promotion=Promotion(**values), until=ended))
        more = len(rows) > limit
        return ChampionPeriodPage(
            items=tuple(items), next_cursor=str(items[-1].promotion.id) if more else None
        )


def describe(change: Promotion) -> str:
    """Who did what when, in one line."""
    who = f"key {change.actor}" if change.actor is not None else "the platform"
    at = change.at.isoformat(timespec="seconds")
    return f"{change.act} from version {change.version_from} to {change.version_to} by {who} at {at}"


async def _insert(connection: AsyncConnection, new: NewPromotion, state: PromotionPhase) -> Promotion:
    values = {
        "model": new.model,
        "version_from": new.version_from,
        "version_to": new.version_to,
        "act": new.act,
        "state": state,
        "forced": new.forced,
        "gated": new.gated,
        "actor": new.actor,
        "reason": new.reason,
        "evidence": dict(new.evidence),
        "below_id": new.below_id,
        "settled_at": None if state is PromotionPhase.INTENDED else func.clock_timestamp(),
    }
    row = (await connection.execute(insert(_P).values(values).returning(*_COLUMNS))).one()
    return Promotion(**row._mapping)


async def _standing(connection: AsyncConnection, model: str) -> PromotionState:
    latest = (
        select(_P.id)
        .where(_P.model == model, _P.state == PromotionPhase.DONE)
        .order_by(_P.at.desc(), _P.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = _selected().where(
        or_(_P.id == latest, and_(_P.model == model, _P.state == PromotionPhase.INTENDED))
    )
    found = {row.state: Promotion(**row._mapping) for row in await connection.execute(query)}
    return PromotionState(
        champion=found.get(PromotionPhase.DONE), intended=found.get(PromotionPhase.INTENDED)
    )


def _selected() -> Select[*tuple[Any, ...]]:
    return select(*_COLUMNS)


def _decoded(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise Rejected("the cursor isn't one that an earlier page gave: leave it out to start anew")
    return int(cursor)


_COLUMNS = (
    _P.id,
    _P.model,
    _P.version_from,
    _P.version_to,
    _P.act,
    _P.state,
    _P.forced,
    _P.gated,
    _P.actor,
    _P.reason,
    _P.evidence,
    _P.below_id,
    _P.at,
    _P.settled_at,
    func.extract("epoch", func.clock_timestamp() - _P.at).label("age"),
)
