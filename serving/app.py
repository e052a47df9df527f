"""Composition root of the serving processes: Settings in, Serve applications out.

The platform's application is the ingress (FastAPI and gateway) and the control (fleet and housekeeping, one per
cluster), which starts an application of its own for each encoder that is needed. `valence up` and a RayService manifest
deploy the same `build`. Each process imports what its own deployment needs, because imports are most of a start.
"""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from db.errors import DatabaseError
from db.experiments import Experiment
from registry.bundle import Bundle
from registry.decisions import Decision
from registry.layout import Engine
from registry.records import EncoderRecord, VersionRecord
from serving.catalogue import Catalogue
from serving.cluster import listen_on_loopback
from serving.encoder import Encoder, open_encoder
from serving.errors import ServingError
from serving.logs import configure_logging
from serving.pool import DEPLOYMENT, ServePool, handle_of
from serving.replica import HandleCalls, RemoteEncoders, Replica
from serving.settings import Settings
from serving.stores import database_of, registry_of
from serving.tracing import spans_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from db.evaluations import Evaluation
    from db.promotions import ReignPage
    from serving.caller import Caller
    from serving.promotions import Outcome, VersionDetail

_LOOK_BACK_SECONDS = 30.0

log = structlog.get_logger(__name__)
listen_on_loopback()

_FIRST_CATALOGUE_SECONDS = 120.0
_TELL_SECONDS = 1.0
_CONSTRUCTOR_TRIES = 3


class EncoderReplica(Replica):
    """One encoder, warm before it counts as running, with the heads of every version on it."""

    def __init__(self, record: EncoderRecord) -> None:
        settings = Settings()
        replica = _logging(settings, "encoder")
        # The threads that compute inherit it: whoever speaks to clients or to the database goes first.
        os.nice(settings.encoder_niceness)
        registry = registry_of(settings)
        cache = settings.home / "cache"
        encoder = _encoder(Bundle.open(registry.fetch(record, cache)), settings)
        warm = encoder.warm_up(settings.encoder_warm_up_seconds)
        log.info(
            "encoder.warm",
            encoder=record.digest,
            engine=encoder.engine,
            shapes=warm.shapes,
            of=warm.of,
            seconds=warm.seconds,
        )

        def fetch(version: VersionRecord) -> Path:
            return registry.fetch(version, cache)

        super().__init__(
            encoder,
            fetch,
            threads=2 * settings.batches_in_flight,
            spans=spans_of(settings.otlp_endpoint, process="encoder", replica=replica),
        )
        if not warm.complete:
            self.warm_up_when_idle()


class Control:
    """The fleet, the judge of experiments and the housekeeping; whoever asks gets the catalogue once it changes."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        from db.evidence import Evidence
        from db.experiments import Experiments
        from db.spaces import Spaces
        from serving.control import lifecycle
        from serving.experiments import Judge
        from serving.fleet import Fleet
        from serving.housekeeping import Housekeeping
        from serving.reembeddings import Reembeddings

        settings = Settings()
        _logging(settings, "control")
        registry = registry_of(settings)
        self._database = database_of(settings)
        await self._database.open()
        self._needed: list[tuple[str, str]] = []
        self._spaces = Spaces(self._database)
        self._space = await self._spaces.ensure(settings.space)
        self._lifecycle = lifecycle(
            settings, database=self._database, registry=registry, catalogue=lambda: self._fleet.catalogue
        )
        self._experiments = Experiments(self._database)
        self._fleet = Fleet(
            registry,
            ServePool(
                lambda record: encoder_application(record, settings),
                lambda record: registry.fetch(record, settings.home / "cache"),
            ),
            space=self._space,
            live=self._live,
            caught_up=self._caught_up,
            model=settings.model,
            grace=settings.encoder_grace_seconds,
            tried=self._tried,
            history=self._lifecycle,
            # Later than that of any control before this one, so that no ingress replica takes it for known.
            first=time.time_ns() // 1_000_000,
        )
        self._judge = Judge(self._experiments, Evidence(self._database), self._champion, self._promote)
        housekeeping = Housekeeping(
            self._database,
            space=settings.space,
            index_memory=settings.index_memory_mib << 20,
            retention_days=settings.retention_days,
        )
        self._tasks = [
            asyncio.create_task(self._fleet.follow(settings.registry_poll_seconds)),
            asyncio.create_task(self._follow_experiments(settings.judge_seconds)),
            asyncio.create_task(self._lifecycle.evaluations.run()),
            asyncio.create_task(Reembeddings(self._spaces).run()),
            asyncio.create_task(housekeeping.run()),
        ]

    async def watch(self, revision: int) -> Catalogue:
        """The catalogue once it differs from `revision`, or after a while as it stands."""
        return await self._fleet.watch(revision)

    async def want(self, versions: list[tuple[str, str]]) -> None:
        """Versions that were asked for by name: they are kept running for a while."""
        self._fleet.want(versions)

    async def promote(
        self, model: str, version: str, caller: "Caller", *, force: bool, reason: str | None
    ) -> "Outcome":
        """`Lifecycle.promote`."""
        return await self._lifecycle.promote(model, version, caller, force=force, reason=reason)

    async def rollback(self, model: str, caller: "Caller", *, reason: str | None) -> "Outcome":
        """`Lifecycle.rollback`."""
        return await self._lifecycle.rollback(model, caller, reason=reason)

    async def history(self, model: str, *, limit: int, cursor: str | None) -> "ReignPage":
        """`Lifecycle.history`."""
        return await self._lifecycle.history(model, limit=limit, cursor=cursor)

    async def version(self, model: str, version: str) -> "VersionDetail":
        """`Lifecycle.version`."""
        return await self._lifecycle.version(model, version)

    async def evaluate(self, model: str, version: str, caller: "Caller") -> "Evaluation":
        """`Lifecycle.evaluate`."""
        return await self._lifecycle.evaluate(model, version, caller)

    async def space_encoder(self, space: str) -> EncoderRecord:
        """`Lifecycle.space_encoder`."""
        return await self._lifecycle.space_encoder(space)

    async def check_health(self) -> None:
        """Restart this process if one of its loops ended, which none should."""
        if ended := [task for task in self._tasks if task.done()]:
            log.error("control.ended", task=repr(ended[0]))
            raise RuntimeError(f"a control loop ended: {ended[0]!r}")

    async def _follow_experiments(self, every: float) -> None:
        """Judge what runs, for ever; a database that is away postpones it."""
        while True:
            try:
                await self._judge.look()
            except ServingError as error:
                log.warning("experiments.postponed", error=str(error))
            await asyncio.sleep(every)

    async def _tried(self) -> list[tuple[str, str]]:
        """What the running experiments need; while the database is away, what they needed last."""
        try:
            running = await self._experiments.list(running=True)
            self._needed = [(each.model, each.challenger) for each in running]
        except DatabaseError as error:
            log.warning("experiments.unreadable", error=str(error))
        return self._needed

    async def _live(self) -> str:
        """The live space; while the database is away, the one that was live last."""
        try:
            self._space = await self._spaces.live() or self._space
        except DatabaseError as error:
            log.warning("spaces.unreadable", error=str(error))
        return self._space

    async def _caught_up(self, space: str) -> bool:
        """Whether a space holds what was stored until a moment ago."""
        try:
            return await self._spaces.caught_up(space)
        except DatabaseError as error:
            log.warning("spaces.unreadable", error=str(error))
            return False

    def _champion(self, model: str) -> str | None:
        return self._fleet.catalogue.champions.get(model)

    async def _promote(self, experiment: Experiment, decision: Decision) -> None:
        await self._lifecycle.decided(experiment.model, experiment.challenger, decision)


class Ingress:
    """The HTTP door of the platform; counts as running once the champion answers."""

    async def __init__(self, control: DeploymentHandle) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        from serving.control import RemoteLifecycle
        from serving.services import services

        settings = Settings()
        replica = _logging(settings, "ingress")
        self._control = control
        self._catalogue = Catalogue()
        self._asked: set[tuple[str, str]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._exit = AsyncExitStack()
        self._services = await self._exit.enter_async_context(
            services(
                settings,
                lambda encoder, spans: RemoteEncoders(HandleCalls(handle_of(encoder)), spans=spans),
                lambda: self._catalogue,
                lambda model, version: self._asked.add((model, version)),
                RemoteLifecycle(control),
                replica=replica,
            )
        )
        async with asyncio.timeout(_FIRST_CATALOGUE_SECONDS):
            while await self._services.missing():
                await self._look()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._tell())]

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """The application, over the services that are open by now."""
        from serving.api import create_api

        return create_api(self._services)

    async def _look(self) -> None:
        seen: Catalogue = await self._control.watch.remote(self._catalogue.revision)
        # A control that is new knows nothing for a moment.
        if seen.revision:
            self._catalogue = seen

    async def _follow(self) -> None:
        """Hold a question open at the control, for ever; while it is down the last catalogue goes on."""
        while True:
            try:
                await self._look()
            except Exception as error:
                # Whatever the remote side or the transport raises, the next question may be answered.
                log.warning("control.unreachable", error=str(error))
                await asyncio.sleep(1)

    async def _tell(self) -> None:
        """Tell the control which versions were asked for by name, for ever."""
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            if not (asked := sorted(self._asked)):
                continue
            self._asked.clear()
            try:
                await self._control.want.remote(asked)
            except Exception as error:
                # Whoever still wants them asks again.
                log.warning("control.unreachable", error=str(error))

    async def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._exit.aclose()


def build(settings: Settings) -> Application:
    """The platform's application, sized by the settings."""
    control = serve.deployment(Control).options(
        name="control",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.1},
        **_drain(settings),
    )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="ingress",
        num_replicas=settings.ingress_replicas,
        # Twice: HAProxy bounds the predictions, and whoever asks for something else still gets in.
        max_ongoing_requests=2 * settings.ingress_max_ongoing,
        ray_actor_options={"num_cpus": settings.ingress_cpus},
        **_drain(settings),
    )
    return ingress.bind(control.bind())


def encoder_application(record: EncoderRecord, settings: Settings) -> Application:
    """The application of an encoder, sized by the settings."""
    encoder = serve.deployment(EncoderReplica).options(
        name=DEPLOYMENT,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.encoder_min_replicas,
            max_replicas=settings.encoder_max_replicas,
            target_ongoing_requests=settings.encoder_target_ongoing,
            upscale_delay_s=settings.encoder_upscale_seconds,
            downscale_delay_s=settings.encoder_downscale_seconds,
            look_back_period_s=min(settings.encoder_upscale_seconds, _LOOK_BACK_SECONDS),
        ),
        # The door bounds what is in flight; a replica never refuses what the door has let in.
        max_ongoing_requests=2 * settings.slots * settings.ingress_replicas + 4,
        max_constructor_retry_count=_CONSTRUCTOR_TRIES,
        ray_actor_options={"num_cpus": settings.encoder_cpus, "num_gpus": settings.encoder_gpus},
        **_drain(settings),
    )
    return encoder.bind(record)


def _logging(settings: Settings, process: str) -> str:
    """Set up this replica's log; the replica's name."""
    replica: str = serve.get_replica_context().replica_id.unique_id
    configure_logging(settings.log_level, process=process, file=settings.log_file, replica=replica)
    return replica


def _drain(settings: Settings) -> dict[str, Any]:
    return {
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.1,
        # A replica that died is missed at the next look, and only then is another one started.
        "health_check_period_s": 1,
    }


def _encoder(bundle: Bundle, settings: Settings) -> Encoder:
    if settings.engine == "torch":
        return open_encoder(bundle, device=settings.device)
    engine = None if settings.engine == "auto" else Engine(settings.engine)
    return open_encoder(
        bundle, engine=engine, threads=settings.encoder_threads or len(os.sched_getaffinity(0))
    )
