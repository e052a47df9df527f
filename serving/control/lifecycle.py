"""A version's life as the API sees it: evaluated, shown, promoted, rolled back, remembered; and a space's encoder.

One border for all of it, because all of it happens in one process, which holds the registry: the control.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from db.errors import DatabaseError
from db.models.evaluations import Evaluation
from db.models.promotions import Act, ChampionPeriodPage
from registry.errors import NotRegistered, RegistryError
from registry.experiments.decisions import PolicyDecision
from registry.store.records import EncoderRecord, VersionRecord
from serving.core.caller import Caller
from serving.errors import NotFound, NotReady
from serving.models.evaluation_queue import EvaluationQueue
from serving.models.promotion import PromotionDecision, PromotionOutcome, PromotionService, VersionDetail


class Lifecycle(Protocol):
    """The control, as the API sees it; what each raises is said at `Promotions` and `Evaluations`."""

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool, reason: str | None
    ) -> PromotionOutcome:
        """Make a version champion."""

    async def rollback(self, model: str, caller: Caller, *, reason: str | None) -> PromotionOutcome:
        """Make the champion before this one answer again."""

    async def history(self, model: str, *, limit: int, cursor: str | None) -> ChampionPeriodPage:
        """Who was champion."""

    async def version(self, model: str, version: str) -> VersionDetail:
        """A version, its evaluations and what the gates would say."""

    async def evaluate(self, model: str, version: str, caller: Caller) -> Evaluation:
        """Ask for an evaluation."""

    async def space_encoder(self, space: str) -> EncoderRecord:
        """The encoder that defines an embedding space."""


class EncoderRecords(Protocol):
    """The registry, as it says which encoder defines a space; the call blocks."""

    def space_encoder(self, space: str) -> EncoderRecord:
        """Which one."""


class Log(Protocol):
    """Where what the platform itself did is kept."""

    async def add(self, *, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Append an entry."""


class LocalLifecycle:
    """The control's part of it, in its process; `promotions` and `evaluations` are for its own loops.

    It is what the fleet keeps true of the past, too, and how a policy promotes.
    """

    def __init__(
        self,
        *,
        promotions: PromotionService,
        evaluations: EvaluationQueue,
        encoders: EncoderRecords,
        audit: Log,
    ) -> None:
        self._encoders = encoders
        self.promotions = promotions
        self.evaluations = evaluations
        self._audit = audit

    async def reconcile(self, model: str, champion: str | None) -> None:
        """`Promotions.reconcile`."""
        await self.promotions.reconcile(model, champion)

    async def failed(self, record: VersionRecord, reason: str) -> None:
        """Note that a version can't answer; a database that is away leaves it to the log."""
        subject = f"{record.model}/{record.version}"
        with suppress(DatabaseError):
            await self._audit.add(action="version.fail", subject=subject, detail={"reason": reason})

    async def champions(self, model: str) -> Sequence[str]:
        """The versions that were champion, the last one first."""
        return await self.promotions.champions(model)

    async def decided(self, model: str, version: str, decision: PolicyDecision) -> None:
        """Carry out a policy's decision to promote.

        Raises:
            Conflict: a gate, or another change, stands in the way.
        """
        why = PromotionDecision(
            act=Act.POLICY, reason=decision.reason, evidence={"decision": decision.dump()}
        )
        await self.promotions.decide(model, version, why)

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool, reason: str | None
    ) -> PromotionOutcome:
        """`Promotions.promote`."""
        return await self.promotions.promote(model, version, caller, force=force, reason=reason)

    async def rollback(self, model: str, caller: Caller, *, reason: str | None) -> PromotionOutcome:
        """`Promotions.rollback`."""
        return await self.promotions.rollback(model, caller, reason=reason)

    async def history(self, model: str, *, limit: int, cursor: str | None) -> ChampionPeriodPage:
        """`Promotions.history`."""
        return await self.promotions.history(model, limit=limit, cursor=cursor)

    async def version(self, model: str, version: str) -> VersionDetail:
        """`Promotions.version`."""
        return await self.promotions.version(model, version)

    async def evaluate(self, model: str, version: str, caller: Caller) -> Evaluation:
        """`Evaluations.request`."""
        return await self.evaluations.request(model, version, caller.key_id)

    async def space_encoder(self, space: str) -> EncoderRecord:
        """The encoder that defines an embedding space.

        Raises:
            NotFound: none is registered that does.
            NotReady: the registry can't be used.
        """
        try:
            record = await asyncio.to_thread(self._encoders.space_encoder, space)
        except NotRegistered:
            record = None
        except RegistryError as error:
            raise NotReady(str(error), retry_after=2) from error
        # MLflow gives names of its own to versions, as `latest`.
        if record is None or record.space != space:
            raise NotFound(f"no encoder defines the space {space!r}: `valence spaces register` adds one")
        return record
