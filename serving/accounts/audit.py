"""Use cases of the audit log: list who did what. Adds nothing to it.

Knows no HTTP and no SQL.
"""

from db.accounts.audit import AuditFilters, AuditPage, AuditRepository
from serving.core.database_errors import translate_database_errors


class AuditService:
    """Every entry can be read, newest first."""

    def __init__(self, records: AuditRepository) -> None:
        self._records = records

    async def list(self, filters: AuditFilters, *, limit: int, cursor: str | None) -> AuditPage:
        """Return a page of the entries that match every filter.

        Raises:
            Invalid: no page gave this cursor.
        """
        with translate_database_errors():
            return await self._records.list(filters, limit=limit, cursor=cursor)
