"""Evaluations: requests, who works on them, and the reports, by bundle digest and data digest.

Owns that one is worked on at a time and that a request whose process died is taken up again. Never reads a report.
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
from db.errors import NotFound
from db.schema import tables

_E = tables.EvaluationRow
_LOCK: Final = 0x4556_414C
ATTEMPTS: Final = 3
# A request whose process gave no sign for so long is nobody's.
STALE_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NewEvaluation:
    """A request: which version is to be judged, by which held-out set; `requested_by` is a key, None the platform."""

    bundle_digest: str
    data_digest: str
    model: str
    version: str
    requested_by: UUID | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A request and what became of it; `state` is running, done or failed, `reason` says why it failed."""

    id: int
    bundle_digest: str
    data_digest: str
    model: str
    version: str
    state: str
    report: Mapping[str, Any] | None = field(repr=False)
    reason: str | None
    requested_by: UUID | None
    attempts: int
    created_at: datetime
    seen_at: datetime | None
    finished_at: datetime | None


class EvaluationRepository:
    """One request for a bundle and a set runs at a time; its end is recorded once."""

    def __init__(self, database: Database, *, stale_seconds: float = STALE_SECONDS) -> None:
        self._database = database
        self._stale = func.make_interval(0, 0, 0, 0, 0, 0, float(stale_seconds), type_=Interval())

    async def request(self, new: NewEvaluation) -> Evaluation:
        """The running evaluation of this bundle by this set, or a new one."""
        values = {
            "bundle_digest": new.bundle_digest,
            "data_digest": new.data_digest,
            "model": new.model,
            "version": new.version,
            "state": "running",
            "requested_by": new.requested_by,
        }
        added = insert(_E).values(values).on_conflict_do_nothing().returning(*_COLUMNS)
        running = select(*_COLUMNS).where(
            _E.bundle_digest == new.bundle_digest,
            _E.data_digest == new.data_digest,
            _E.state == "running",
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
            # Neither added nor there: it ended in between, so that there is room for a new one.
            if row is not None:
                return Evaluation(**row._mapping)

    async def claim(self) -> Evaluation | None:
        """The oldest request that nobody works on, which is the caller's now; None while another is worked on.

        A request whose process gave no sign for `stale_seconds` is nobody's. One that died `ATTEMPTS` times has failed.
        """
        async with self._database.begin() as connection:
            got = await connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK, 0)))
            if not got.scalar_one():
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
            row = (
                await connection.execute(
                    update(_E)
                    .where(_E.id == oldest)
                    .values(seen_at=func.now(), attempts=_E.attempts + 1)
                    .returning(*_COLUMNS)
                )
            ).one_or_none()
        return Evaluation(**row._mapping) if row is not None else None

    async def heartbeat(self, evaluation_id: int) -> bool:
        """A sign that its process lives; False if it isn't running any more."""
        seen = update(_E).where(_E.id == evaluation_id, _E.state == "running").values(seen_at=func.now())
        async with self._database.begin() as connection:
            return bool((await connection.execute(seen)).rowcount)

    async def finish(self, evaluation_id: int, report: Mapping[str, Any]) -> bool:
        """Stores its report; False if it was ended already."""
        return await self._end(evaluation_id, {"state": "done", "report": dict(report)})

    async def fail(self, evaluation_id: int, reason: str) -> bool:
        """Ends it without a report; False if it was ended already."""
        return await self._end(evaluation_id, {"state": "failed", "reason": reason})

    async def get(self, evaluation_id: int) -> Evaluation:
        """One evaluation.

        Raises:
            NotFound: no such evaluation.
        """
        async with self._database.begin() as connection:
            found = await connection.execute(select(*_COLUMNS).where(_E.id == evaluation_id))
            row = found.one_or_none()
        if row is None:
            raise NotFound(f"there is no evaluation {evaluation_id}")
        return Evaluation(**row._mapping)

    async def find_report(self, bundle_digest: str, data_digest: str) -> Evaluation | None:
        """The latest with a report, of a bundle by a set."""
        query = select(*_COLUMNS).where(
            _E.bundle_digest == bundle_digest, _E.data_digest == data_digest, _E.state == "done"
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(query.order_by(_E.id.desc()).limit(1))).one_or_none()
        return Evaluation(**row._mapping) if row is not None else None

    async def list_of_bundle(self, bundle_digest: str, *, limit: int = 10) -> tuple[Evaluation, ...]:
        """Those of a bundle, by any set, newest first."""
        query = select(*_COLUMNS).where(_E.bundle_digest == bundle_digest).order_by(_E.id.desc())
        async with self._database.begin() as connection:
            return tuple(Evaluation(**row._mapping) for row in await connection.execute(query.limit(limit)))

    async def _end(self, evaluation_id: int, values: Mapping[str, Any]) -> bool:
        ended = (
            update(_E)
            .where(_E.id == evaluation_id, _E.state == "running")
            .values(**values, finished_at=func.now())
        )
        async with self._database.begin() as connection:
            return bool((await connection.execute(ended)).rowcount)


_COLUMNS = (
    _E.id,
    _E.bundle_digest,
    _E.data_digest,
    _E.model,
    _E.version,
    _E.state,
    _E.report,
    _E.reason,
    _E.requested_by,
    _E.attempts,
    _E.created_at,
    _E.seen_at,
    _E.finished_at,
)
