"""The deployment of the control, one per cluster.

Runs the reconciler, the policies, the evaluations, the re-embedding and the maintenance; carries out promotions; hands
out the catalog.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from db.errors import DatabaseError
from db.experiments.experiments import Experiment
from registry.experiments.decisions import PolicyDecision
from serving.control.pool import ServePool
from serving.core.catalog import Catalog
from serving.core.connections import build_database, build_registry
from serving.core.home import Home
from serving.core.periodic import run_periodically
from serving.deployments.carried_settings import CarriedSettings, receive_settings
from serving.deployments.encoder import encoder_application
from serving.deployments.options import start_logging
from serving.errors import ServingError

log = structlog.get_logger(__name__)


class Control:
    """Runs the loops of the control, each in a task, and answers the ingress replicas."""

    async def __init__(self, carried: CarriedSettings | None = None) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        from db.embeddings.spaces import SpaceRepository
        from db.experiments.counts import CountRepository
        from db.experiments.experiments import ExperimentRepository
        from serving.control.maintenance import Maintenance
        from serving.control.reconciler import Reconciler
        from serving.control.remote import build_lifecycle
        from serving.experiments.policy_runner import PolicyRunner
        from serving.spaces.reembedding_runner import ReembeddingRunner

        settings = receive_settings(carried)
        start_logging(settings, "control")
        registry = build_registry(settings)
        self._database = build_database(settings)
        await self._database.open()
        self._needed: list[tuple[str, str]] = []
        self._spaces = SpaceRepository(self._database)
        self._space = await self._spaces.ensure_live(settings.space)
        self._lifecycle = build_lifecycle(
            settings, database=self._database, registry=registry, catalog=lambda: self._reconciler.catalog
        )
        self._experiments = ExperimentRepository(self._database)
        self._reconciler = Reconciler(
            registry,
            ServePool(
                lambda record: encoder_application(record, settings, carried),
                lambda record: registry.fetch(record, Home(settings.home).cache),
            ),
            space=self._space,
            live_space=self._live_space,
            is_caught_up=self._is_caught_up,
            model=settings.model,
            grace=settings.encoder_grace_seconds,
            client_encoders=settings.client_encoders,
            experiment_versions=self._experiment_versions,
            lifecycle=self._lifecycle,
            # Greater than any revision of an earlier control, so that no ingress replica takes it for known.
            first_revision=time.time_ns() // 1_000_000,
        )
        self._policy_runner = PolicyRunner(
            self._experiments, CountRepository(self._database), self._champion, self._promote
        )
        maintenance = Maintenance(
            self._database,
            space=settings.space,
            index_memory=settings.index_memory_mib << 20,
            retention_days=settings.retention_days,
        )
        self._tasks = [
            asyncio.create_task(self._reconciler.run(settings.registry_poll_seconds)),
            asyncio.create_task(
                run_periodically(
                    self._policy_runner.run_once,
                    every=settings.judge_seconds,
                    errors=ServingError,
                    event="experiments.postponed",
                )
            ),
            asyncio.create_task(self._lifecycle.evaluations.run()),
            asyncio.create_task(ReembeddingRunner(self._spaces).run()),
            asyncio.create_task(maintenance.run()),
        ]

    async def watch(self, revision: int) -> Catalog:
        """Return the catalog once it differs from `revision`, or after a while as it is."""
        return await self._reconciler.watch(revision)

    async def request_versions(self, versions: list[tuple[str, str]], *, by_clients: bool) -> None:
        """Keep versions running for a while, because they were named: by clients, or by engineers."""
        self._reconciler.request_versions(versions, by_clients=by_clients)

    async def call_lifecycle(self, method: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Call a method of the lifecycle for an ingress replica."""
        from serving.control.remote import call_lifecycle

        return await call_lifecycle(self._lifecycle, method, arguments, named)

    async def check_health(self) -> None:
        """Fail, so that Serve restarts this process, if one of its loops has ended."""
        if ended := [task for task in self._tasks if task.done()]:
            log.error("control.ended", task=repr(ended[0]))
            raise RuntimeError(f"a control loop ended: {ended[0]!r}")

    async def _experiment_versions(self) -> list[tuple[str, str]]:
        """Return the versions that experiments need; while the database is away, those of the last time."""
        try:
            running = await self._experiments.list(running=True)
            self._needed = [(each.model, each.challenger) for each in running]
        except DatabaseError as error:
            log.warning("experiments.unreadable", error=str(error))
        return self._needed

    async def _live_space(self) -> str:
        """Return the live space; while the database is away, the one that was live last."""
        try:
            self._space = await self._spaces.live() or self._space
        except DatabaseError as error:
            log.warning("spaces.unreadable", error=str(error))
        return self._space

    async def _is_caught_up(self, space: str) -> bool:
        """Return whether a space has vectors of all texts but the latest."""
        try:
            return await self._spaces.is_caught_up(space)
        except DatabaseError as error:
            log.warning("spaces.unreadable", error=str(error))
            return False

    def _champion(self, model: str) -> str | None:
        return self._reconciler.catalog.champions.get(model)

    async def _promote(self, experiment: Experiment, decision: PolicyDecision) -> None:
        await self._lifecycle.promote_by_policy(experiment, decision)
