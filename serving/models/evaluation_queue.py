"""The queue of evaluations: requests are stored, and run one at a time, each in its own process.

One per cluster is enough, and several do no harm: the database says which process works on which evaluation. Measures
nothing itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from db.errors import DatabaseError
from db.models.evaluations import Evaluation, EvaluationRepository, NewEvaluation
from registry.errors import NotRegistered
from serving.core.catalog import CHAMPION, Catalog
from serving.core.database_errors import translate_database_errors
from serving.core.periodic import run_periodically, wait_at_most
from serving.core.registry_errors import call_registry
from serving.core.subprocesses import run_module
from serving.errors import Conflict

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry

log = structlog.get_logger(__name__)

POLL_SECONDS = 5.0

Launch = Callable[[int], Awaitable[str | None]]


async def run_evaluation(evaluation_id: int) -> str | None:
    """Run one evaluation in its own process; return the end of its standard error if it failed."""
    return await run_module("serving.models.evaluation_worker", str(evaluation_id))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationQueue:
    """A version is not evaluated twice at once, and an evaluation whose process died is started again.

    `launch` works on a claimed evaluation until its process ends, and returns the reason if it failed.
    """

    evaluations: EvaluationRepository
    registry: "ModelRegistry"
    catalog: Callable[[], Catalog]
    launch: Launch = run_evaluation
    _requested: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def request(self, model: str, version: str, actor: UUID | None) -> Evaluation:
        """Return the running evaluation of a version or a new one; request the champion's too if it has no report.

        Raises:
            NotFound: no such model or version.
            Conflict: the model has no held-out set.
            NotReady, StoreUnavailable: the registry or the database can't be used now.
        """
        versions = self.catalog().versions(model)
        entry = self.catalog().entry(model, version)
        try:
            data = await call_registry(self.registry.held_out_digest, model)
        except NotRegistered as error:
            raise Conflict(str(error)) from error
        with translate_database_errors():
            for other in versions.values():
                # A candidate is compared with the champion, so the champion is evaluated first.
                if CHAMPION in other.record.aliases and other.record.digest != entry.record.digest:
                    digest = other.record.digest
                    if await self.evaluations.find_report(digest, data) is None:
                        await self.evaluations.request(
                            NewEvaluation(
                                bundle_digest=digest,
                                data_digest=data,
                                model=model,
                                version=other.record.version,
                            )
                        )
            evaluation = await self.evaluations.request(
                NewEvaluation(
                    bundle_digest=entry.record.digest,
                    data_digest=data,
                    model=model,
                    version=version,
                    requested_by=actor,
                )
            )
        self._requested.set()
        return evaluation

    async def run(self) -> None:
        """Work on the requested evaluations, one at a time, without end; wait for a database that is down."""
        await run_periodically(
            self._work,
            every=POLL_SECONDS,
            errors=DatabaseError,
            event="evaluations.postponed",
            sleep=partial(wait_at_most, self._requested),
        )

    async def _work(self) -> None:
        self._requested.clear()
        while await self.step():
            pass

    async def step(self) -> bool:
        """Work on the next evaluation until it ends; return False if there was none."""
        evaluation = await self.evaluations.claim()
        if evaluation is None:
            return False
        log.info(
            "evaluation.started",
            evaluation=evaluation.id,
            model=evaluation.model,
            version=evaluation.version,
            attempt=evaluation.attempts,
        )
        why = await self.launch(evaluation.id)
        # This changes nothing if the process itself stored that the evaluation ended.
        failed = await self.evaluations.fail(evaluation.id, why or "its process ended without a report")
        log.info("evaluation.ended", evaluation=evaluation.id, reason=why if failed else None)
        return True
