"""The history of champions, kept true to the alias, whatever dies when and whoever moves it.

The alias in MLflow is the truth; the history follows. Never moves the alias.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import structlog

from db.models.promotions import (
    Act,
    ChampionPeriodPage,
    NewPromotion,
    Promotion,
    PromotionPhase,
    PromotionState,
    describe,
)
from serving.core.database_errors import translate_database_errors
from serving.core.registry_errors import call_registry
from serving.errors import Conflict

log = structlog.get_logger(__name__)

# Between the intention and the lock nothing is done that takes time.
GRACE_SECONDS = 10.0


class HeldHistory(Protocol):
    """A model's history while nobody else can record a change."""

    async def state(self) -> PromotionState:
        """Where the model stands."""

    async def finish(self, promotion: Promotion, state: PromotionPhase, *, why: str | None = None) -> None:
        """End an intended change."""

    async def record(self, new: NewPromotion) -> Promotion:
        """Add one that has happened."""


class PromotionRecords(Protocol):
    """The stored history of champions."""

    async def state(self, model: str) -> PromotionState:
        """Where a model stands."""

    async def get(self, promotion_id: int) -> Promotion:
        """One change."""

    async def champion_at(self, model: str, moment: datetime) -> Promotion | None:
        """Who was champion, and why."""

    async def intend(self, new: NewPromotion, *, after: int | None) -> Promotion:
        """Record what is about to be done."""

    def lock(self, model: str) -> AbstractAsyncContextManager[HeldHistory]:
        """The model's lock."""
        ...

    def try_lock(self, model: str) -> AbstractAsyncContextManager[HeldHistory | None]:
        """The same, if nobody holds it."""
        ...

    async def record_refusal(
        self, model: str, version: str, *, actor: UUID | None, why: str, evidence: Mapping[str, Any]
    ) -> None:
        """Note a refusal."""

    async def history(self, model: str, *, limit: int = 50, cursor: str | None = None) -> ChampionPeriodPage:
        """A page of it."""


class Aliases(Protocol):
    """The registry, as the chronicle sees it; the call blocks."""

    def champion_version(self, model: str) -> str | None:
        """The version that the alias names."""


class ChampionHistory:
    """What happened to the alias is recorded once, with several at work at once, too.

    `grace_seconds`: how young an intended change may be without its process holding the lock yet.
    """

    def __init__(
        self, *, records: PromotionRecords, registry: Aliases, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._records = records
        self._registry = registry
        self._grace = grace_seconds

    async def reconcile(self, model: str, champion: str | None) -> None:
        """Make the history say what the alias says: `champion` is what was seen of it.

        What was intended by a process that died is settled by where the alias is; a move by any other MLflow
        client is recorded once, as external. Costs one read while both agree. Safe with several at once.
        """
        await self._reconcile(model, champion, wait=False)

    async def _reconcile(self, model: str, champion: str | None, *, wait: bool) -> None:
        """`wait`: for another reconciler, but never for a change that is under way."""
        with translate_database_errors():
            standing = await self._records.state(model)
            known = standing.champion is not None or champion is None
            if standing.intended is None and known and standing.version == champion:
                return
            lock = self._records.lock if wait and standing.intended is None else self._records.try_lock
            async with lock(model) as held:
                # Whoever holds the lock lives, and settles what it does itself.
                if held is not None:
                    await self._follow(held, model)

    async def _follow(self, held: HeldHistory, model: str) -> None:
        # Read again: under the lock no change of ours can come between this and what is recorded.
        champion = await call_registry(self._registry.champion_version, model)
        standing = await held.state()
        intended = standing.intended
        if intended is not None:
            if champion == intended.version_to:
                await held.finish(intended, PromotionPhase.DONE, why="its process died after the alias moved")
            elif intended.age < self._grace:
                return
            else:
                await held.finish(
                    intended, PromotionPhase.ABANDONED, why="its process died before the alias moved"
                )
            standing = await held.state()
        if standing.version == champion:
            return
        known = standing.champion
        made = await held.record(
            NewPromotion(
                model=model,
                version_from=standing.version,
                version_to=champion,
                act=Act.EXTERNAL if known is not None else Act.BOOTSTRAP,
                below_id=known.id if known is not None else None,
            )
        )
        log.info("champion.followed", model=model, act=made.act, version=champion)

    async def standing(self, model: str) -> PromotionState:
        """Where the model stands, once the history says what the alias says.

        Raises:
            Conflict: a change is under way.
        """
        champion = await call_registry(self._registry.champion_version, model)
        await self._reconcile(model, champion, wait=True)
        with translate_database_errors():
            standing = await self._records.state(model)
        if standing.intended is not None:
            raise Conflict(f"another change is under way: {describe(standing.intended)}")
        return standing

    async def below(self, standing: PromotionState) -> Promotion | None:
        """The change under the present one that made another champion."""
        below = standing.champion
        with translate_database_errors():
            while below is not None and below.version_to in (None, standing.version):
                below = await self._records.get(below.below_id) if below.below_id is not None else None
        return below
