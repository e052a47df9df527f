"""The history of champions, which follows the alias, even if another client moves it or a process dies.

The alias in MLflow is the truth. Never moves the alias.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from db.models.promotions import (
    Act,
    LockedHistory,
    NewPromotion,
    Promotion,
    PromotionPhase,
    PromotionRepository,
    PromotionState,
    describe,
)
from serving.core.database_errors import translate_database_errors
from serving.core.registry_errors import call_registry
from serving.errors import Conflict

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry

log = structlog.get_logger(__name__)

# Longer than it takes to lock the history after the intention is stored.
GRACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionHistory:
    """Each move of the alias is recorded once, even if several processes reconcile at once.

    `grace_seconds`: the age from which an intended change whose process holds no lock counts as abandoned.
    """

    promotions: PromotionRepository
    registry: "ModelRegistry"
    grace_seconds: float = GRACE_SECONDS

    async def reconcile(self, model: str, champion: str | None) -> None:
        """Bring the history in line with the alias; `champion` is the version that the alias was seen to name.

        A change that was intended by a process that died is finished according to the alias. A move by another MLflow
        client is recorded once, as external. Costs one read if both agree. Safe to run several times at once.
        """
        await self._reconcile(model, champion, wait=False)

    async def _reconcile(self, model: str, champion: str | None, *, wait: bool) -> None:
        """Reconcile; with `wait`, wait for another reconciler, but never for a change that is under way."""
        with translate_database_errors():
            state = await self.promotions.state(model)
            is_known = state.champion is not None or champion is None
            if state.intended is None and is_known and state.version == champion:
                return
            lock = self.promotions.lock if wait and state.intended is None else self.promotions.try_lock
            async with lock(model) as history:
                # The holder of a lock that can't be had is alive, and finishes its own change.
                if history is not None:
                    await self._follow_alias(history, model)

    async def _follow_alias(self, history: LockedHistory, model: str) -> None:
        # Read again: under the lock, no other change of the platform can come before the record.
        champion = await call_registry(self.registry.champion_version, model)
        state = await history.state()
        intended = state.intended
        if intended is not None:
            if champion == intended.version_to:
                await history.finish(
                    intended, PromotionPhase.DONE, why="its process died after the alias moved"
                )
            elif intended.age < self.grace_seconds:
                return
            else:
                await history.finish(
                    intended, PromotionPhase.ABANDONED, why="its process didn't move the alias"
                )
            state = await history.state()
        if state.version == champion:
            return
        previous = state.champion
        promotion = await history.record(
            NewPromotion(
                model=model,
                version_from=state.version,
                version_to=champion,
                act=Act.EXTERNAL if previous is not None else Act.BOOTSTRAP,
                below_id=previous.id if previous is not None else None,
            )
        )
        log.info("champion.followed", model=model, act=promotion.act, version=champion)

    async def state(self, model: str) -> PromotionState:
        """Reconcile, then return the state of a model's promotions.

        Raises:
            Conflict: a change is under way.
        """
        champion = await call_registry(self.registry.champion_version, model)
        await self._reconcile(model, champion, wait=True)
        with translate_database_errors():
            state = await self.promotions.state(model)
        if state.intended is not None:
            raise Conflict(f"another change is under way: {describe(state.intended)}")
        return state

    async def find_below(self, state: PromotionState) -> Promotion | None:
        """Return the change below the present one that made another version champion."""
        below = state.champion
        with translate_database_errors():
            while below is not None and below.version_to in (None, state.version):
                below = await self.promotions.get(below.below_id) if below.below_id is not None else None
        return below
