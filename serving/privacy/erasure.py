"""Use cases of erasure: by user and by text, each with a receipt.

Knows no HTTP and no SQL. Says until when copies outside the database's tables may last; never removes those.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

from db.privacy.erasure import ErasureReceipt
from serving.core.caller import Caller
from serving.core.database_errors import translate_database_errors


class ErasureRecords(Protocol):
    """What is stored, as erasure sees it."""

    async def erase_user(self, user_id: UUID, *, actor: UUID | None) -> ErasureReceipt:
        """Erase what is a user's."""

    async def erase_text(self, text_id: UUID, *, actor: UUID | None) -> ErasureReceipt:
        """Erase a text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatedReceipt:
    """A receipt with its times: backups and archived log made before are gone by `backups_expire_at`."""

    receipt: ErasureReceipt
    erased_at: datetime
    backups_expire_at: datetime


class ErasureService:
    """Whatever was acknowledged before the call is erased when it returns; again: a receipt of zeros.

    `backup_days`: how long backups and archived log are kept at most, by the operator's word.
    """

    def __init__(self, records: ErasureRecords, *, backup_days: int) -> None:
        self._records = records
        self._backup_days = timedelta(days=backup_days)

    async def user(self, user_id: UUID, caller: Caller) -> DatedReceipt:
        """Raises NotFound."""
        with translate_database_errors():
            return self._dated(await self._records.erase_user(user_id, actor=caller.key_id))

    async def text(self, text_id: UUID, caller: Caller) -> DatedReceipt:
        """Raises NotFound."""
        with translate_database_errors():
            return self._dated(await self._records.erase_text(text_id, actor=caller.key_id))

    def _dated(self, receipt: ErasureReceipt) -> DatedReceipt:
        now = datetime.now(UTC)
        return DatedReceipt(receipt=receipt, erased_at=now, backups_expire_at=now + self._backup_days)
