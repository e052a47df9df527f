"""The audit log: who did what, appended in the transaction that did it, never changed.

Holds ids and names, never texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.engine import Database
from db.schema import tables

_A = tables.AuditEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One act; `actor` is the key that did it, None the platform itself."""

    id: int
    at: datetime
    actor: UUID | None
    action: str
    subject: str
    detail: Mapping[str, Any]


class Audit:
    """What was done, appended and read newest first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, *, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Appends what the platform itself did, in a transaction of its own."""
        async with self._database.begin() as connection:
            await append(connection, actor=None, action=action, subject=subject, detail=detail)

    async def list(
        self, *, subject: str | None = None, before: int | None = None, limit: int = 100
    ) -> tuple[Entry, ...]:
        """Entries older than `before`, on one subject or all."""
        query = (
            select(_A.id, _A.at, _A.actor, _A.action, _A.subject, _A.detail)
            .order_by(_A.id.desc())
            .limit(limit)
        )
        if subject is not None:
            query = query.where(_A.subject == subject)
        if before is not None:
            query = query.where(_A.id < before)
        async with self._database.begin() as connection:
            return tuple(Entry(**row._mapping) for row in await connection.execute(query))


async def append(
    connection: AsyncConnection,
    *,
    actor: UUID | None,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Adds an entry in the caller's transaction."""
    await connection.execute(
        insert(_A).values(actor=actor, action=action, subject=subject, detail=dict(detail or {}))
    )
