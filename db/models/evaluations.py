"""Evaluations: the requests, the one that is worked on, and the reports, by bundle digest and data digest.

One evaluation is worked on at a time, and a request whose process died is taken up again. Never reads a report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Interval, func, select, update
from sqlalchemy.dialects.postgresql import insert

from db.accounts import audit
from db.connection.engine import Database
from db.connection.repository import Repository
from db.core.rows import columns_of, values_of
from db.schema import tables

_E = tables.EvaluationRow
_LOCK: Final = 0x4556_414C
ATTEMPTS: Final = 3
# A request whose process has sent no heartbeat for this long is free again.
STALE_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NewEvaluation:
    """A request to evaluate a version on a held-out set; `requested_by` is a key, None the platform."""

    bundle_digest: str
    data_digest: str
    model: str
    version: str
    requested_by: UUID | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation(NewEvaluation):
    """A request and its outcome; `state` is running, done or failed, `reason` says why it failed."""

    id: int
    state: str
    report: Mapping[str, Any] | None = field(repr=False)
    reason: str | None
    attempts: int
    created_at: datetime
    seen_at: datetime | None
    finished_at: datetime | None


_COLUMNS = columns_of(_E, Evaluation)


class EvaluationRepository(Repository):
    """One request for a bundle and a set runs at a time; its end is recorded once."""

    def __init__(self, database: Database, *, stale_seconds: float = STALE_SECONDS) -> None:
        super().__init__(database)
        self._stale = func.make_interval(0, 0, 0, 0, 0, 0, float(stale_seconds), type_=Interval())

    async def request(self, new: NewEvaluation) -> Evaluation:
        """Return the running evaluation of this bundle on this set, or a new one."""
        values = values_of(new) | {"state": "running"}
        added = insert(_E).values(values).on_conflict_do_nothing().returning(*_COLUMNS)
        running = select(*_COLUMNS).where(
            _E.bundle_digest == new.bundle_digest, _E.data_digest == new.data_digest, _E.state == "running"
        )
        while True:
            async with self._database.begin() as connection:
                row = (await connection.execute(added)).one_or_none()
                if row is not None:
                    await audit.append(
                        connection,
                        actor=new.requested_by,
                        action="evaluation.request",
                        subject=new.model,
                        detail={"evaluation": row.id, "version": new.version, "bundle": new.bundle_digest},
                    )
                else:
                    row = (await connection.execute(running)).one_or_none()
            # Without a row the other one ended in between, so a new one can be added now.
            if row is not None:
                return Evaluation(**row._mapping)

    async def claim(self) -> Evaluation | None:
        """Claim the oldest waiting request; return None while one is worked on.

        A request without a heartbeat for `stale_seconds` is free again; after `ATTEMPTS` deaths it has failed.
        """
        async with self._database.begin() as connection:
            lock = await connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK, 0)))
            if not lock.scalar_one():
                return None
            waiting = (_E.state == "running", func.coalesce(_E.seen_at < func.now() - self._stale, True))
            worked_on = select(_E.id).where(_E.state == "running", _E.seen_at >= func.now() - self._stale)
            if (await connection.execute(worked_on.limit(1))).one_or_none() is not None:
                return None
            await connection.execute(
                update(_E)
                .where(*waiting, _E.attempts >= ATTEMPTS)
                .values(state="failed", finished_at=func.now(), reason=f"its process died {ATTEMPTS} times")
            )
            oldest = select(_E.id).where(*waiting).order_by(_E.id).limit(1).scalar_subquery()
            claimed = (
                update(_E)
                .where(_E.id == oldest)
                .values(seen_at=func.now(), attempts=_E.attempts + 1)
                .returning(*_COLUMNS)
            )
            row = (await connection.execute(claimed)).one_or_none()
        return Evaluation(**row._mapping) if row is not None else None

    async def heartbeat(self, evaluation_id: int) -> bool:
        """Record that its process lives; return False if it isn't running any more."""
        return await self._update_running(evaluation_id, {"seen_at": func.now()})

    async def finish(self, evaluation_id: int, report: Mapping[str, Any]) -> bool:
        """Store the report; return False if the evaluation had ended already."""
        return await self._update_running(
            evaluation_id, {"state": "done", "report": dict(report), "finished_at": func.now()}
        )

    async def fail(self, evaluation_id: int, reason: str) -> bool:
        """End it without a report; return False if it had ended already."""
        return await self._update_running(
            evaluation_id, {"state": "failed", "reason": reason, "finished_at": func.now()}
        )

    async def get(self, evaluation_id: int) -> Evaluation:
        """Return one evaluation. Raises NotFound if there is none."""
        query = select(*_COLUMNS).where(_E.id == evaluation_id)
        return await self._get(Evaluation, query, f"there is no evaluation {evaluation_id}")

    async def find_report(self, bundle_digest: str, data_digest: str) -> Evaluation | None:
        """Return the latest evaluation of a bundle on a set that has a report."""
        query = select(*_COLUMNS).where(
            _E.bundle_digest == bundle_digest, _E.data_digest == data_digest, _E.state == "done"
        )
        return next(iter(await self._list(Evaluation, query.order_by(_E.id.desc()).limit(1))), None)

    async def list_of_bundle(self, bundle_digest: str, *, limit: int = 10) -> tuple[Evaluation, ...]:
        """Return the evaluations of a bundle on any set, newest first."""
        query = select(*_COLUMNS).where(_E.bundle_digest == bundle_digest)
        return await self._list(Evaluation, query.order_by(_E.id.desc()).limit(limit))

    async def _update_running(self, evaluation_id: int, values: Mapping[str, Any]) -> bool:
        changed = update(_E).where(_E.id == evaluation_id, _E.state == "running").values(**values)
        async with self._database.begin() as connection:
            return bool((await connection.execute(changed)).rowcount)
