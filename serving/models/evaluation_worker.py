"""The process of one evaluation, in idle time alone: `python -m serving.models.evaluation_worker ID`.

Measures on one thread, and writes the report to the database. Serves no requests.
"""

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from db.analytics.replay import ReplayRepository
from db.embeddings.spaces import SpaceRepository
from db.errors import DatabaseError
from db.models.evaluations import Evaluation, EvaluationRepository
from registry.bundles.manifest_schema import Engine
from registry.errors import NotRegistered, RegistryError
from registry.evaluation.report import EvaluationReport
from serving.core.subprocesses import yield_to_others
from serving.errors import Invalid, ServingError
from serving.models.evaluator import EvaluationPlan, VersionEvaluator

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry

log = structlog.get_logger(__name__)

_HEARTBEAT_SECONDS: Final = 3.0
_EXIT_NO_REPORT: Final = 3


@dataclass(frozen=True, slots=True)
class EvaluationWorker:
    """Turns a claimed evaluation into a stored report, or into a stored reason if the version is at fault."""

    evaluations: EvaluationRepository
    replays: ReplayRepository
    registry: "ModelRegistry"
    evaluator: VersionEvaluator

    async def run(self, evaluation: Evaluation, *, cache: Path, plan: EvaluationPlan) -> bool:
        """Evaluate, and return whether a report was stored.

        Raises:
            DatabaseError: the report can't be stored; the request stays, and is claimed again.
        """
        heartbeat = asyncio.create_task(self._send_heartbeats(evaluation.id))
        try:
            report = await self._report(evaluation, cache, plan)
        except DatabaseError:
            raise
        except Exception as error:
            # A foreign bundle may raise anything, which is the version's fault and not this program's.
            reason = str(error) or type(error).__name__
            log.warning("evaluation.failed", evaluation=evaluation.id, reason=reason)
            await self.evaluations.fail(evaluation.id, reason)
            return False
        finally:
            heartbeat.cancel()
            with suppress(asyncio.CancelledError, DatabaseError):
                await heartbeat
        is_stored = await self.evaluations.finish(evaluation.id, report.dump())
        if is_stored:
            await asyncio.to_thread(self._log_in_registry, evaluation.id, report)
        return is_stored

    def _log_in_registry(self, number: int, report: EvaluationReport) -> None:
        """Show the stored report in MLflow, too, as far as MLflow takes it."""
        try:
            self.registry.log_evaluation(
                report.model, report.version, number, report.measures(), report.dump_figures()
            )
        except (RegistryError, OSError) as error:
            log.warning("evaluation.unlogged", evaluation=number, error=str(error))

    async def _report(self, evaluation: Evaluation, cache: Path, plan: EvaluationPlan) -> EvaluationReport:
        record = await asyncio.to_thread(self.registry.version, evaluation.model, evaluation.version)
        if record.digest != evaluation.bundle_digest:
            raise Invalid(f"version {evaluation.version} has another bundle now, {record.digest}: ask again")
        held_out = await asyncio.to_thread(self.registry.held_out, evaluation.model, cache)
        if held_out.digest != evaluation.data_digest:
            raise Invalid(f"the held-out set has changed, to {held_out.digest}: ask again")
        try:
            champion = await asyncio.to_thread(self.registry.champion, evaluation.model)
        except NotRegistered:
            champion = None
        stored = list(await self.replays.sample(evaluation.model, size=plan.drawn, judged=plan.judged))
        return await asyncio.to_thread(self.evaluator.evaluate, record, held_out, champion, stored)

    async def _send_heartbeats(self, evaluation_id: int) -> None:
        while True:
            with suppress(DatabaseError):
                await self.evaluations.heartbeat(evaluation_id)
            await asyncio.sleep(_HEARTBEAT_SECONDS)


async def run(evaluation_id: int) -> int:
    """Work on a claimed evaluation; return the exit code, 0 if a report was stored."""
    from serving.core.connections import build_database, build_registry
    from serving.core.home import Home
    from serving.core.logs import configure_logging
    from serving.settings import Settings

    settings = Settings()
    configure_logging(settings.log_level, process="evaluation", file=settings.log_file)
    engine = None if settings.engine in ("auto", "torch") else Engine(settings.engine)
    plan = EvaluationPlan(
        replayed=settings.evaluation_texts,
        drawn=4 * settings.evaluation_texts,
        engine=engine,
        share=settings.evaluation_share,
    )
    registry, cache = build_registry(settings), Home(settings.home).cache
    database = build_database(settings)
    await database.open()
    try:
        evaluations = EvaluationRepository(database)
        evaluation = await evaluations.get(evaluation_id)
        if evaluation.state != "running":
            return _EXIT_NO_REPORT
        log.info(
            "evaluation.begun", evaluation=evaluation_id, model=evaluation.model, version=evaluation.version
        )
        space = await SpaceRepository(database).ensure_live(settings.space)
        worker = EvaluationWorker(
            evaluations,
            ReplayRepository(database, space=space),
            registry,
            VersionEvaluator(registry, space=space, cache=cache, plan=plan),
        )
        return 0 if await worker.run(evaluation, cache=cache, plan=plan) else _EXIT_NO_REPORT
    finally:
        await database.close()


def main() -> int:
    """Run the process, which yields to all others and ends with its parent; return its exit code."""
    yield_to_others()
    try:
        return asyncio.run(run(int(sys.argv[1])))
    except (DatabaseError, RegistryError, ServingError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
