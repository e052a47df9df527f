"""Fill one embedding space: every text that lacks a vector of it gets one."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.embeddings.reembedding import ReembeddingRepository
from db.schema.tables import NIL_ID

_PAGE: Final = 5_000
_LATER_PAGE: Final = 500
_BATCH: Final = 64
RECENT_SECONDS: Final = 0.5
# Each query for recent texts reaches back before the previous one. The round finds a text that is missed even so.
_OVERLAP: Final = timedelta(seconds=10)

Embed: TypeAlias = Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]


@dataclass
class SpaceFiller:
    """Gives a vector of one space to each text that lacks one.

    It reads all texts by id, page by page, again and again. Every `recent_seconds` it first queries the texts that were
    predicted recently, so that a new text does not wait until the round reaches it.

    Args:
        texts: the texts of the space.
        embed: returns float32 [n, d] of unit length, in the space.
        page, later_page: the number of texts of a page, in the first round and in the rounds after it.
        batch: the number of texts that are embedded at once.
        recent_seconds: the time between two queries for recent texts.
    """

    texts: ReembeddingRepository
    embed: Embed
    _: KW_ONLY
    page: int = _PAGE
    later_page: int = _LATER_PAGE
    batch: int = _BATCH
    recent_seconds: float = RECENT_SECONDS
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    added: int = field(default=0, init=False)
    _after: UUID = field(default=NIL_ID, init=False)
    _waiting: list[UUID] = field(default_factory=list, init=False)
    _rounds: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._seen_until = self._due = self.now()

    @property
    def is_whole(self) -> bool:
        """Return whether every text that was there at the start has its vector, or is gone."""
        return self._rounds > 0 and not self._waiting

    async def step(self) -> bool:
        """Fill a batch or read a page; return False if there is nothing more to do for now.

        Raises:
            Conflict: the space is being removed.
        """
        now = self.now()
        is_due = now >= self._due
        if is_due:
            if recent := await self.texts.list_recent(self._seen_until - _OVERLAP, limit=self.batch):
                await self._fill(recent)
                return True
            self._seen_until, self._due = now, now + timedelta(seconds=self.recent_seconds)
        if self._waiting:
            await self._fill(self._waiting[: self.batch])
            del self._waiting[: self.batch]
            return True
        # The first round finds all that should be missing. Later rounds are a safeguard: one small page at a time.
        if is_due or not self._rounds:
            limit = self.later_page if self._rounds else self.page
            page = await self.texts.read_page(self._after, limit=limit)
            self._waiting, self._after = list(page.lacking), page.last or NIL_ID
            self._rounds += page.last is None
        return bool(self._waiting) or not self._rounds

    async def _fill(self, ids: Sequence[UUID]) -> None:
        # Texts that were erased meanwhile, or stored with their vector, are not returned.
        contents = await self.texts.read_contents(ids)
        if not contents:
            return
        vectors = await self.embed([content for _, content in contents])
        rows = np.ascontiguousarray(vectors, "<f2")
        self.added += await self.texts.add_vectors(
            [text_id for text_id, _ in contents], [row.tobytes() for row in rows]
        )
