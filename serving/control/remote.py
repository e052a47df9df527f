"""Both ends of the calls to the control: what it holds for a version's life, and the ingress's view of it."""

from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from db.accounts.audit import AuditRepository
from db.connection.engine import Database
from db.models.evaluations import Evaluation, EvaluationRepository
from db.models.promotions import ChampionPeriodPage, PromotionRepository
from registry.evaluation.gates import Gates
from registry.store.model_registry import ModelRegistry
from registry.store.records import EncoderRecord
from serving.control.lifecycle import LocalLifecycle
from serving.core.caller import Caller
from serving.core.catalog import Catalog
from serving.errors import NotReady, ServingError
from serving.models.evaluation_queue import EvaluationQueue
from serving.models.promotion import PromotionOutcome, PromotionService, VersionDetail
from serving.settings import Settings


def lifecycle(
    settings: Settings, *, database: Database, registry: ModelRegistry, catalog: Callable[[], Catalog]
) -> LocalLifecycle:
    """What the control holds: `evaluations.run()` is a loop of its own, `promotions.reconcile` for the fleet."""
    stored = EvaluationRepository(database)
    return LocalLifecycle(
        promotions=PromotionService(
            records=PromotionRepository(database),
            reports=stored,
            registry=registry,
            catalog=catalog,
            gates=gates(settings),
        ),
        evaluations=EvaluationQueue(records=stored, registry=registry, catalog=catalog),
        encoders=registry,
        audit=AuditRepository(database),
    )


def gates(settings: Settings) -> Gates:
    """The gates as they are set."""
    return Gates(
        accuracy_difference=settings.gate_accuracy_difference,
        recall_drop=settings.gate_recall_drop,
        ece=settings.gate_ece,
        cosine_mean=settings.gate_cosine_mean,
        cosine_worst=settings.gate_cosine_worst,
        latency_ratio=settings.gate_latency_ratio,
        flips_share=settings.gate_flips_share,
    )


class RemoteLifecycle:
    """The control's `Lifecycle` through a Ray Serve handle; its errors arrive as they were raised."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def promote(
        self, model: str, version: str, caller: Caller, *, force: bool, reason: str | None
    ) -> PromotionOutcome:
        """Make a version champion."""
        outcome: PromotionOutcome = await self._call(
            "promote", model, version, caller, force=force, reason=reason
        )
        return outcome

    async def rollback(self, model: str, caller: Caller, *, reason: str | None) -> PromotionOutcome:
        """Make the champion before this one answer again."""
        outcome: PromotionOutcome = await self._call("rollback", model, caller, reason=reason)
        return outcome

    async def history(self, model: str, *, limit: int, cursor: str | None) -> ChampionPeriodPage:
        """Who was champion."""
        page: ChampionPeriodPage = await self._call("history", model, limit=limit, cursor=cursor)
        return page

    async def version(self, model: str, version: str) -> VersionDetail:
        """A version, its evaluations and what the gates would say."""
        detail: VersionDetail = await self._call("version", model, version)
        return detail

    async def evaluate(self, model: str, version: str, caller: Caller) -> Evaluation:
        """Ask for an evaluation."""
        evaluation: Evaluation = await self._call("evaluate", model, version, caller)
        return evaluation

    async def space_encoder(self, space: str) -> EncoderRecord:
        """The encoder that defines an embedding space."""
        record: EncoderRecord = await self._call("space_encoder", space)
        return record

    async def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        try:
            return await getattr(self._handle, method).remote(*arguments, **named)
        except RayTaskError as error:
            if isinstance(error.cause, ServingError):
                raise error.cause from None
            raise
        except (RayError, RayServeException, ConnectionError) as error:
            raise NotReady(f"the control is gone ({type(error).__name__}): send again") from error
