"""The use cases of erasure: by user and by text, each with a receipt.

Knows no HTTP and no SQL. Says until when copies outside the database's tables may last; never removes those.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from db.privacy.erasure import ErasureReceipt, ErasureRepository
from serving.core.caller import Caller
from serving.core.database_errors import translate_database_errors


@dataclass(frozen=True, kw_only=True, slots=True)
class DatedReceipt:
    """A receipt with its times: older backups and archived log are gone by `backups_expire_at`."""

    receipt: ErasureReceipt
    erased_at: datetime
    backups_expire_at: datetime


class ErasureService:
    """Erases all that was acknowledged before the call; a repeated call returns a receipt of zeros.

    `backup_days`: how long the operator keeps backups and archived log at most.
    """

    def __init__(self, erasures: ErasureRepository, *, backup_days: int) -> None:
        self._erasures = erasures
        self._backup_days = timedelta(days=backup_days)

    async def erase_user(self, user_id: UUID, caller: Caller) -> DatedReceipt:
        """Erase a user's data. Raises NotFound."""
        with translate_database_errors():
            return self._add_dates(await self._erasures.erase_user(user_id, actor=caller.key_id))

    async def erase_text(self, text_id: UUID, caller: Caller) -> DatedReceipt:
        """Erase a text with its predictions. Raises NotFound."""
        with translate_database_errors():
            return self._add_dates(await self._erasures.erase_text(text_id, actor=caller.key_id))

    def _add_dates(self, receipt: ErasureReceipt) -> DatedReceipt:
        now = datetime.now(UTC)
        return DatedReceipt(receipt=receipt, erased_at=now, backups_expire_at=now + self._backup_days)
