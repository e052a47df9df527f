"""A version's life as the API sees it: evaluated, shown, promoted, rolled back, remembered.

One border for all of it, because all of it happens in one process, which holds the registry: the control.
"""

from typing import Protocol

from db.evaluations import Evaluation
from db.promotions import ReignPage
from serving.evaluations import Evaluations
from serving.gateway import Caller
from serving.promotions import Outcome, Promotions, VersionDetail


class Lifecycle(Protocol):
    """The control, as the API sees it; what each raises is said at `Promotions` and `Evaluations`."""

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool, reason: str | None
    ) -> Outcome:
        """Make a version champion."""

    async def rollback(self, model: str, caller: Caller, *, reason: str | None) -> Outcome:
        """Make the champion before this one answer again."""

    async def history(self, model: str, *, limit: int, cursor: str | None) -> ReignPage:
        """Who was champion."""

    async def version(self, model: str, version: str) -> VersionDetail:
        """A version, its evaluations and what the gates would say."""

    async def evaluate(self, model: str, version: str, caller: Caller) -> Evaluation:
        """Ask for an evaluation."""


class LocalLifecycle:
    """The control's part of it, in its process; `promotions` and `evaluations` are for its own loops."""

    def __init__(self, *, promotions: Promotions, evaluations: Evaluations) -> None:
        self.promotions = promotions
        self.evaluations = evaluations

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool, reason: str | None
    ) -> Outcome:
        """`Promotions.promote`."""
        return await self.promotions.promote(model, version, caller, force=force, reason=reason)

    async def rollback(self, model: str, caller: Caller, *, reason: str | None) -> Outcome:
        """`Promotions.rollback`."""
        return await self.promotions.rollback(model, caller, reason=reason)

    async def history(self, model: str, *, limit: int, cursor: str | None) -> ReignPage:
        """`Promotions.history`."""
        return await self.promotions.history(model, limit=limit, cursor=cursor)

    async def version(self, model: str, version: str) -> VersionDetail:
        """`Promotions.version`."""
        return await self.promotions.version(model, version)

    async def evaluate(self, model: str, version: str, caller: Caller) -> Evaluation:
        """`Evaluations.request`."""
        return await self.evaluations.request(model, version, caller.key_id)
