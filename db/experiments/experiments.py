"""Experiments: how a model's traffic is split, what its policy decided, and who changed it.

Each change is one transaction with its entry in the audit log. Never counts what the arms did.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from db.accounts import audit
from db.connection.engine import Database
from db.errors import Conflict, Duplicate, NotFound
from db.schema import tables

_E, _S, _D = tables.ExperimentRow, tables.ExperimentStageRow, tables.DecisionRow


@dataclass(frozen=True, kw_only=True, slots=True)
class NewExperiment:
    """A challenger to be tried against the champion; `salt` decides which units it gets."""

    model: str
    champion: str
    challenger: str
    share: float
    shadow: bool
    salt: str
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """An experiment as it stands; `stage` grows with each change of the share, `reason` says why it stopped."""

    id: UUID
    model: str
    champion: str
    challenger: str
    share: float
    shadow: bool
    salt: str
    stage: int
    state: str
    reason: str | None
    policy: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime
    stopped_at: datetime | None

    @property
    def running(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewDecision:
    """What a policy decided, with all that lets it be recomputed."""

    action: str
    verdict: str
    reason: str
    share: float | None
    evidence: Mapping[str, Any]
    policy: Mapping[str, Any]
    numbers: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A decision that was carried out."""

    id: int
    at: datetime
    action: str
    verdict: str
    reason: str
    share: float | None
    evidence: Mapping[str, Any]
    policy: Mapping[str, Any]
    numbers: Mapping[str, Any]


class ExperimentRepository:
    """One experiment of a model runs at a time; one that has stopped never changes again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewExperiment, *, actor: UUID | None) -> Experiment:
        """Starts an experiment.

        Raises:
            Duplicate: one of this model runs.
        """
        statement = (
            insert(_E)
            .values(
                id=uuid4(),
                model=new.model,
                champion=new.champion,
                challenger=new.challenger,
                share=new.share,
                shadow=new.shadow,
                salt=new.salt,
                state="running",
                policy=dict(new.policy),
            )
            .returning(*_COLUMNS)
        )
        async with self._database.begin() as connection:
            try:
                row = (await connection.execute(statement)).one()
            except IntegrityError as error:
                if isinstance(error.orig, psycopg.errors.UniqueViolation):
                    raise Duplicate(f"an experiment of {new.model!r} runs already: stop it first") from error
                raise
            made = Experiment(**row._mapping)
            await connection.execute(insert(_S).values(experiment_id=made.id, number=1, share=made.share))
            detail = {"challenger": made.challenger, "champion": made.champion, "share": made.share}
            await _note(connection, made, actor, "create", detail | {"shadow": made.shadow})
        return made

    async def get(self, experiment_id: UUID) -> Experiment:
        """One experiment.

        Raises:
            NotFound: there is none with this id.
        """
        async with self._database.begin() as connection:
            return await _one(connection, experiment_id, lock=False)

    async def list(self, *, running: bool = False, limit: int = 100) -> tuple[Experiment, ...]:
        """Experiments, newest first."""
        query = select(*_COLUMNS).order_by(_E.created_at.desc(), _E.id).limit(limit)
        if running:
            query = query.where(_E.state == "running")
        async with self._database.begin() as connection:
            return tuple(Experiment(**row._mapping) for row in await connection.execute(query))

    async def change(
        self,
        experiment_id: UUID,
        *,
        actor: UUID | None,
        share: float | None = None,
        policy: Mapping[str, Any] | None = None,
        decision: NewDecision | None = None,
        stage: int | None = None,
    ) -> Experiment:
        """Sets share and policy; another share begins a stage. `stage`: only while it is in this one.

        Raises:
            NotFound: there is none with this id.
            Conflict: it has stopped, or is in another stage.
        """
        async with self._database.begin() as connection:
            now = await _running(connection, experiment_id, stage)
            values: dict[str, Any] = {"updated_at": func.now()}
            detail: dict[str, Any] = {}
            if policy is not None and policy != now.policy:
                values["policy"] = detail["policy"] = dict(policy)
            if share is not None and share != now.share:
                values |= {"share": share, "stage": now.stage + 1}
                detail["share"] = share
            if not detail:
                return now
            if decision is not None:
                await _decided(connection, now, decision)
            changed = await _set(connection, experiment_id, values)
            if changed.stage != now.stage:
                await connection.execute(
                    insert(_S).values(experiment_id=experiment_id, number=changed.stage, share=changed.share)
                )
            await _note(connection, changed, actor, "change", detail)
        return changed

    async def decide(self, experiment_id: UUID, decision: NewDecision, *, stage: int) -> None:
        """Stores a decision that is about to be carried out.

        Raises:
            NotFound: there is none with this id.
            Conflict: it has stopped, is in another stage, or this was decided already.
        """
        async with self._database.begin() as connection:
            now = await _running(connection, experiment_id, stage)
            pending = select(_D.id).where(_D.experiment_id == now.id, _D.action == decision.action)
            if (await connection.execute(pending)).first() is not None:
                raise Conflict(f"experiment {experiment_id}: {decision.action} has been decided already")
            await _decided(connection, now, decision)

    async def stop(
        self, experiment_id: UUID, *, actor: UUID | None, reason: str, decision: NewDecision | None = None
    ) -> Experiment:
        """Stops it; one that has stopped stays as it is.

        Raises:
            NotFound: there is none with this id.
        """
        async with self._database.begin() as connection:
            now = await _one(connection, experiment_id, lock=True)
            if not now.running:
                return now
            if decision is not None:
                await _decided(connection, now, decision)
            values = {
                "state": "stopped",
                "reason": reason,
                "stopped_at": func.now(),
                "updated_at": func.now(),
            }
            stopped = await _set(connection, experiment_id, values)
            await _note(connection, stopped, actor, "stop", {"reason": reason})
        return stopped

    async def decisions(self, experiment_id: UUID) -> tuple[Decision, ...]:
        """What the policy decided, oldest first."""
        query = select(*_DECISION).where(_D.experiment_id == experiment_id).order_by(_D.id)
        async with self._database.begin() as connection:
            return tuple(Decision(**row._mapping) for row in await connection.execute(query))


_COLUMNS = (
    _E.id, _E.model, _E.champion, _E.challenger, _E.share, _E.shadow, _E.salt, _E.stage, _E.state, _E.reason,
    _E.policy, _E.created_at, _E.updated_at, _E.stopped_at,
)  # fmt: skip
_DECISION = (
    _D.id, _D.at, _D.action, _D.verdict, _D.reason, _D.share, _D.evidence, _D.policy, _D.numbers,
)  # fmt: skip


async def _one(connection: AsyncConnection, experiment_id: UUID, *, lock: bool) -> Experiment:
    query = select(*_COLUMNS).where(_E.id == experiment_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no experiment {experiment_id}")
    return Experiment(**row._mapping)


async def _running(connection: AsyncConnection, experiment_id: UUID, stage: int | None) -> Experiment:
    found = await _one(connection, experiment_id, lock=True)
    if not found.running:
        raise Conflict(f"experiment {experiment_id} has stopped: start another one")
    if stage not in (None, found.stage):
        raise Conflict(f"experiment {experiment_id} is in stage {found.stage} by now")
    return found


async def _set(connection: AsyncConnection, experiment_id: UUID, values: Mapping[str, Any]) -> Experiment:
    changed = update(_E).where(_E.id == experiment_id).values(**values).returning(*_COLUMNS)
    return Experiment(**(await connection.execute(changed)).one()._mapping)


async def _decided(connection: AsyncConnection, now: Experiment, decision: NewDecision) -> None:
    await connection.execute(
        insert(_D).values(
            experiment_id=now.id,
            action=decision.action,
            verdict=decision.verdict,
            reason=decision.reason,
            share=decision.share,
            evidence=dict(decision.evidence),
            policy=dict(decision.policy),
            numbers=dict(decision.numbers),
        )
    )


async def _note(
    connection: AsyncConnection,
    experiment: Experiment,
    actor: UUID | None,
    act: str,
    detail: Mapping[str, Any],
) -> None:
    await audit.append(
        connection,
        actor=actor,
        action=f"experiment.{act}",
        subject=str(experiment.id),
        detail={"model": experiment.model, **detail},
    )
