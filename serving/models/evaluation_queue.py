"""Evaluations as the platform runs them: asked for, started one at a time in processes of their own, taken up again.

One per cluster is enough, several do no harm: who works on what is said in the database. Measures nothing itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol
from uuid import UUID

import structlog

from db.errors import DatabaseError
from db.models.evaluations import Evaluation, NewEvaluation
from registry.errors import NotRegistered, RegistryError
from serving.core.catalog import CHAMPION, Catalog
from serving.core.database_errors import translate_database_errors
from serving.core.periodic import run_periodically, wait_at_most
from serving.core.subprocesses import run_module
from serving.errors import Conflict, NotReady

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0

Launch = Callable[[int], Awaitable[str | None]]


class EvaluationRecords(Protocol):
    """The stored evaluations."""

    async def request(self, new: NewEvaluation) -> Evaluation:
        """The one that runs, or a new one."""

    async def claim(self) -> Evaluation | None:
        """The oldest that nobody works on."""

    async def fail(self, evaluation_id: int, reason: str) -> bool:
        """End one without a report."""

    async def find_report(self, bundle_digest: str, data_digest: str) -> Evaluation | None:
        """The latest with a report."""

    async def list_of_bundle(self, bundle_digest: str, *, limit: int = 10) -> tuple[Evaluation, ...]:
        """Those of a bundle, newest first."""


class HeldOutSets(Protocol):
    """The registry, as it says by which set a model is judged; the call blocks."""

    def held_out_digest(self, model: str) -> str:
        """Which set."""
        ...


class EvaluationQueue:
    """A version that is asked for while its evaluation runs isn't measured twice; what died is begun again.

    Args:
        records: the stored evaluations.
        registry: names the held-out set.
        catalog: the versions that there are.
        launch: works on a claimed evaluation until its process has ended; why, if it ended badly.
    """

    def __init__(
        self,
        *,
        records: EvaluationRecords,
        registry: HeldOutSets,
        catalog: Callable[[], Catalog],
        launch: Launch | None = None,
    ) -> None:
        self._records = records
        self._registry = registry
        self._catalog = catalog
        self._launch = launch or run_evaluation
        self._asked = asyncio.Event()

    async def request(self, model: str, version: str, actor: UUID | None) -> Evaluation:
        """The evaluation that runs for this version, or a new one; the champion's too, if it has no report yet.

        Raises:
            NotFound: no such model or version.
            Conflict: the model has no held-out set.
            NotReady, StoreUnavailable: the registry or the database can't be used.
        """
        versions = self._catalog().versions(model)
        entry = self._catalog().entry(model, version)
        data = await self._data_digest(model)
        with translate_database_errors():
            for other in versions.values():
                # A candidate is judged against it, so that it is measured first.
                if CHAMPION in other.record.aliases and other.record.digest != entry.record.digest:
                    digest = other.record.digest
                    if await self._records.find_report(digest, data) is None:
                        await self._records.request(
                            NewEvaluation(
                                bundle_digest=digest,
                                data_digest=data,
                                model=model,
                                version=other.record.version,
                            )
                        )
            found = await self._records.request(
                NewEvaluation(
                    bundle_digest=entry.record.digest,
                    data_digest=data,
                    model=model,
                    version=version,
                    requested_by=actor,
                )
            )
        self._asked.set()
        return found

    async def run(self) -> None:
        """Work on what was asked for, one after the other, for ever; a database that is down is waited for."""
        await run_periodically(
            self._work,
            every=LOOK_SECONDS,
            errors=DatabaseError,
            event="evaluations.postponed",
            sleep=partial(wait_at_most, self._asked),
        )

    async def _work(self) -> None:
        self._asked.clear()
        while await self.step():
            pass

    async def step(self) -> bool:
        """Work on the next evaluation to its end; False if there was none."""
        evaluation = await self._records.claim()
        if evaluation is None:
            return False
        log.info(
            "evaluation.started",
            evaluation=evaluation.id,
            model=evaluation.model,
            version=evaluation.version,
            attempt=evaluation.attempts,
        )
        why = await self._launch(evaluation.id)
        # A process that wrote its end itself isn't contradicted: what has ended stays as it is.
        failed = await self._records.fail(evaluation.id, why or "its process ended without a report")
        log.info("evaluation.ended", evaluation=evaluation.id, reason=why if failed else None)
        return True

    async def _data_digest(self, model: str) -> str:
        try:
            return await asyncio.to_thread(self._registry.held_out_digest, model)
        except NotRegistered as error:
            raise Conflict(str(error)) from error
        except RegistryError as error:
            raise NotReady(str(error), retry_after=2) from error


async def run_evaluation(evaluation_id: int) -> str | None:
    """Run one evaluation in a process of its own; return the end of its standard error if it failed."""
    return await run_module("serving.models.evaluation_worker", str(evaluation_id))
