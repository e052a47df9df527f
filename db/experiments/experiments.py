"""Experiments: the split of a model's traffic, the decisions of its policy, and the changes to both.

Each change is one transaction with its entry in the audit log. Never counts predictions or feedback.
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
from db.connection.repository import Repository
from db.core.rows import columns_of, values_of
from db.errors import Conflict, Duplicate, NotFound
from db.schema import tables

_E, _S, _D = tables.ExperimentRow, tables.ExperimentStageRow, tables.DecisionRow


@dataclass(frozen=True, kw_only=True, slots=True)
class NewExperiment:
    """A challenger to compare with the champion; `salt` decides which units it gets."""

    model: str
    champion: str
    challenger: str
    share: float
    shadow: bool
    salt: str
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment(NewExperiment):
    """A stored experiment; `stage` grows with each change of the share, `reason` says why it stopped."""

    id: UUID
    stage: int
    state: str
    reason: str | None
    created_at: datetime
    updated_at: datetime
    stopped_at: datetime | None

    @property
    def running(self) -> bool:
        """Whether it splits traffic."""
        return self.state == "running"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewDecision:
    """A decision of a policy, with everything that is needed to compute it again."""

    action: str
    verdict: str
    reason: str
    share: float | None
    evidence: Mapping[str, Any]
    policy: Mapping[str, Any]
    numbers: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision(NewDecision):
    """A stored decision."""

    id: int
    at: datetime


_COLUMNS = columns_of(_E, Experiment)
_DECISION = columns_of(_D, Decision)


class ExperimentRepository(Repository):
    """One experiment of a model runs at a time; one that has stopped never changes again."""

    async def create(self, new: NewExperiment, *, actor: UUID | None) -> Experiment:
        """Start an experiment. Raises Duplicate if an experiment of this model is running."""
        statement = (
            insert(_E).values(values_of(new) | {"id": uuid4(), "state": "running"}).returning(*_COLUMNS)
        )
        async with self._database.begin() as connection:
            try:
                row = (await connection.execute(statement)).one()
            except IntegrityError as error:
                if isinstance(error.orig, psycopg.errors.UniqueViolation):
                    raise Duplicate(
                        f"an experiment of {new.model!r} is running already: stop it first"
                    ) from error
                raise
            created = Experiment(**row._mapping)
            await connection.execute(
                insert(_S).values(experiment_id=created.id, number=1, share=created.share)
            )
            detail = {"challenger": created.challenger, "champion": created.champion, "share": created.share}
            await _audit(connection, created, actor, "create", detail | {"shadow": created.shadow})
        return created

    async def get(self, experiment_id: UUID) -> Experiment:
        """Return one experiment. Raises NotFound if there is none."""
        async with self._database.begin() as connection:
            return await _get(connection, experiment_id)

    async def list(self, *, running: bool = False, limit: int = 100) -> tuple[Experiment, ...]:
        """Return experiments, newest first."""
        query = select(*_COLUMNS).order_by(_E.created_at.desc(), _E.id).limit(limit)
        if running:
            query = query.where(_E.state == "running")
        return await self._list(Experiment, query)

    async def change(
        self,
        experiment_id: UUID,
        *,
        actor: UUID | None,
        share: float | None = None,
        policy: Mapping[str, Any] | None = None,
        decision: NewDecision | None = None,
        seen: Experiment | None = None,
    ) -> Experiment:
        """Set share and policy; a new share begins a stage. `seen`: what the decision was based on.

        Raises NotFound if there is none, Conflict if it has stopped, or its stage or policy isn't the one seen.
        """
        async with self._database.begin() as connection:
            now = await _get_running(connection, experiment_id, seen)
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
                await _add_decision(connection, now, decision)
            changed = await _update(connection, experiment_id, values)
            if changed.stage != now.stage:
                await connection.execute(
                    insert(_S).values(experiment_id=experiment_id, number=changed.stage, share=changed.share)
                )
            await _audit(connection, changed, actor, "change", detail)
        return changed

    async def decide(self, seen: Experiment, decision: NewDecision) -> None:
        """Store a decision that is about to be carried out, and that was based on the experiment as it was seen.

        Raises NotFound if there is none, Conflict if it has stopped, its stage or policy isn't the one seen, or the
        same policy has decided so before.
        """
        async with self._database.begin() as connection:
            now = await _get_running(connection, seen.id, seen)
            same = (_D.action == decision.action, _D.policy == dict(decision.policy))
            pending = select(_D.id).where(_D.experiment_id == now.id, *same)
            if (await connection.execute(pending)).first() is not None:
                raise Conflict(f"experiment {seen.id}: {decision.action} has been decided already")
            await _add_decision(connection, now, decision)

    async def stop(
        self,
        experiment_id: UUID,
        *,
        actor: UUID | None,
        reason: str,
        decision: NewDecision | None = None,
        seen: Experiment | None = None,
    ) -> Experiment:
        """Stop it; an experiment that has stopped stays unchanged. `seen`: what the decision was based on.

        Raises NotFound if there is none, Conflict if its stage or policy isn't the one seen.
        """
        async with self._database.begin() as connection:
            now = await _get(connection, experiment_id, lock=True)
            if not now.running:
                return now
            _require_unchanged(now, seen)
            if decision is not None:
                await _add_decision(connection, now, decision)
            values = {
                "state": "stopped",
                "reason": reason,
                "stopped_at": func.now(),
                "updated_at": func.now(),
            }
            stopped = await _update(connection, experiment_id, values)
            await _audit(connection, stopped, actor, "stop", {"reason": reason})
        return stopped

    async def decisions(self, experiment_id: UUID) -> tuple[Decision, ...]:
        """Return the policy's decisions, oldest first."""
        query = select(*_DECISION).where(_D.experiment_id == experiment_id).order_by(_D.id)
        return await self._list(Decision, query)


async def _get(connection: AsyncConnection, experiment_id: UUID, *, lock: bool = False) -> Experiment:
    query = select(*_COLUMNS).where(_E.id == experiment_id)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise NotFound(f"there is no experiment {experiment_id}")
    return Experiment(**row._mapping)


async def _get_running(
    connection: AsyncConnection, experiment_id: UUID, seen: Experiment | None
) -> Experiment:
    experiment = await _get(connection, experiment_id, lock=True)
    if not experiment.running:
        raise Conflict(f"experiment {experiment_id} has stopped: start another one")
    _require_unchanged(experiment, seen)
    return experiment


def _require_unchanged(now: Experiment, seen: Experiment | None) -> None:
    """Raise Conflict if somebody has changed what a decision was based on."""
    if seen is None:
        return
    if now.stage != seen.stage:
        raise Conflict(f"experiment {now.id} is in stage {now.stage} now")
    if now.policy != seen.policy:
        raise Conflict(f"experiment {now.id} has another policy now")


async def _update(connection: AsyncConnection, experiment_id: UUID, values: Mapping[str, Any]) -> Experiment:
    changed = update(_E).where(_E.id == experiment_id).values(**values).returning(*_COLUMNS)
    return Experiment(**(await connection.execute(changed)).one()._mapping)


async def _add_decision(connection: AsyncConnection, now: Experiment, decision: NewDecision) -> None:
    await connection.execute(insert(_D).values(values_of(decision) | {"experiment_id": now.id}))


async def _audit(
    connection: AsyncConnection,
    experiment: Experiment,
    actor: UUID | None,
    action: str,
    detail: Mapping[str, Any],
) -> None:
    await audit.append(
        connection,
        actor=actor,
        action=f"experiment.{action}",
        subject=str(experiment.id),
        detail={"model": experiment.model, **detail},
    )
