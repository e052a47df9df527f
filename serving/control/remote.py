"""Both ends of the calls from an ingress to the control's lifecycle, and the composition of that lifecycle."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from db.accounts.audit import AuditRepository
from db.connection.engine import Database
from db.models.evaluations import EvaluationRepository
from db.models.promotions import PromotionRepository
from registry.evaluation.gates import Gates
from registry.store.model_registry import ModelRegistry
from serving.control.lifecycle import REMOTE_METHODS, Lifecycle, LocalLifecycle
from serving.core.catalog import Catalog
from serving.errors import NotReady, ServingError
from serving.models.evaluation_queue import EvaluationQueue
from serving.models.promotion import PromotionService
from serving.settings import Settings


def build_lifecycle(
    settings: Settings, *, database: Database, registry: ModelRegistry, catalog: Callable[[], Catalog]
) -> LocalLifecycle:
    """Build the lifecycle that the control holds; its `evaluations.run()` is for a task of the control."""
    stored = EvaluationRepository(database)
    return LocalLifecycle(
        promotions=PromotionService(
            promotions=PromotionRepository(database),
            evaluations=stored,
            registry=registry,
            catalog=catalog,
            gates=build_gates(settings),
        ),
        evaluations=EvaluationQueue(evaluations=stored, registry=registry, catalog=catalog),
        registry=registry,
        audit=AuditRepository(database),
    )


def build_gates(settings: Settings) -> Gates:
    """Build the gates from the settings."""
    return Gates(
        accuracy_difference=settings.gate_accuracy_difference,
        recall_drop=settings.gate_recall_drop,
        ece=settings.gate_ece,
        cosine_mean=settings.gate_cosine_mean,
        cosine_worst=settings.gate_cosine_worst,
        latency_ratio=settings.gate_latency_ratio,
        flips_share=settings.gate_flips_share,
    )


def connect_lifecycle(handle: Any, *, seconds: float) -> Lifecycle:
    """Return the control's lifecycle, called through its Ray Serve handle; errors arrive as they were raised.

    A call that takes more than `seconds` is NotReady for its caller, and goes on at the control.
    """
    return cast(Lifecycle, _RemoteLifecycle(handle, seconds))


async def call_lifecycle(
    lifecycle: Lifecycle, method: str, arguments: Sequence[Any], named: Mapping[str, Any]
) -> Any:
    """Call one of `REMOTE_METHODS` for a remote caller. Raise AttributeError for any other name."""
    if method not in REMOTE_METHODS:
        raise AttributeError(f"{method!r} is no remote method of the lifecycle")
    return await getattr(lifecycle, method)(*arguments, **named)


class _RemoteLifecycle:
    def __init__(self, handle: Any, seconds: float) -> None:
        self._handle = handle
        self._seconds = seconds

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method not in REMOTE_METHODS:
            raise AttributeError(f"{method!r} is no remote method of the lifecycle")
        return partial(self._call, method)

    async def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        call = asyncio.ensure_future(
            self._await(self._handle.call_lifecycle.remote(method, arguments, named))
        )
        done, _ = await asyncio.wait({call}, timeout=self._seconds)
        if not done:
            # Its error, if it has one, is in the control's log.
            call.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise NotReady(
                f"the control has not finished after {self._seconds:g} s and goes on: look at the result, or send again"
            )
        return call.result()

    async def _await(self, response: Awaitable[Any]) -> Any:
        try:
            return await response
        except RayTaskError as error:
            if isinstance(error.cause, ServingError):
                raise error.cause from None
            raise
        except (RayError, RayServeException, ConnectionError) as error:
            raise NotReady(f"the control is gone ({type(error).__name__}): send again") from error
