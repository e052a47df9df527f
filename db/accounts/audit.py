"""The audit log: actions and their actors.

Each entry is appended in the transaction of its action and never changes. Holds ids and names, never texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import eq, ge, lt
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.repository import Repository
from db.core.cursors import Page, cut_page, decode_row_id, encode_row_id
from db.core.rows import columns_of
from db.schema import tables

_A = tables.AuditRow


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One action; `actor` is the id of a key, None the platform itself."""

    id: int
    at: datetime
    actor: UUID | None
    action: str
    subject: str
    detail: Mapping[str, Any]


_COLUMNS = columns_of(_A, AuditEntry)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditFilters:
    """Conditions on entries; None matches all, `until` is exclusive."""

    actor: UUID | None = None
    action: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None


AuditPage: TypeAlias = Page[AuditEntry]


class AuditRepository(Repository):
    """Entries are appended and listed, never changed or removed."""

    async def add(self, *, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Append an action of the platform itself, in its own transaction."""
        async with self._database.begin() as connection:
            await append(connection, actor=None, action=action, subject=subject, detail=detail)

    async def list(
        self, filters: AuditFilters | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> AuditPage:
        """Return a page of at most `limit` entries, newest first.

        Raises Rejected if no page gave this cursor.
        """
        filters = filters or AuditFilters()
        query = select(*_COLUMNS).order_by(_A.id.desc()).limit(limit + 1)
        for column, compare, value in (
            (_A.actor, eq, filters.actor),
            (_A.action, eq, filters.action),
            (_A.subject, eq, filters.subject),
            (_A.at, ge, filters.since),
            (_A.at, lt, filters.until),
        ):
            if value is not None:
                query = query.where(compare(column, value))
        if cursor is not None:
            query = query.where(_A.id < decode_row_id(cursor))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        entries = [AuditEntry(**row._mapping) for row in rows]
        return cut_page(entries, limit, lambda entry: encode_row_id(entry.id))


async def append(
    connection: AsyncConnection,
    *,
    actor: UUID | None,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an entry in the caller's transaction."""
    await connection.execute(
        insert(_A).values(actor=actor, action=action, subject=subject, detail=dict(detail or {}))
    )
