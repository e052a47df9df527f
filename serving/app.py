"""Composition root of the serving processes: Settings in, a Serve application out.

Three deployments: the ingress (FastAPI and gateway), the encoder (replicas with the encoder and its heads) and the
control (fleet and housekeeping, one per cluster). `valence up` and a RayService manifest deploy the same `build`.
Each process imports what its own deployment needs, because imports are most of a start.
"""

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle

from registry.bundle import Bundle
from registry.layout import Engine
from registry.records import EncoderRecord, VersionRecord
from serving.catalogue import Catalogue
from serving.cluster import listen_on_loopback
from serving.encoder import Encoder, open_encoder
from serving.logs import configure_logging
from serving.replica import HandleCalls, RemoteEncoders, Replica
from serving.settings import Settings
from serving.stores import database_of, registry_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from db.evaluations import Evaluation
    from db.promotions import ReignPage
    from serving.gateway import Caller
    from serving.promotions import Outcome, VersionDetail

_LOOK_BACK_SECONDS = 30.0

log = structlog.get_logger(__name__)
listen_on_loopback()

_FIRST_CATALOGUE_SECONDS = 120.0


class EncoderReplica(Replica):
    """One encoder, warm before it counts as running, with the heads of every version on it."""

    def __init__(self, record: EncoderRecord) -> None:
        settings = Settings()
        configure_logging(settings.log_level)
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

        super().__init__(encoder, fetch, threads=2 * settings.batches_in_flight)
        if not warm.complete:
            self.warm_up_when_idle()


class Control:
    """The fleet and the housekeeping; whoever asks gets the catalogue as soon as it changes."""

    async def __init__(self, encoder: DeploymentHandle, record: EncoderRecord) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        from serving.control import lifecycle
        from serving.fleet import Fleet
        from serving.housekeeping import Housekeeping

        settings = Settings()
        configure_logging(settings.log_level)
        registry = registry_of(settings)
        self._encoder = encoder
        self._database = database_of(settings)
        await self._database.open()
        self._lifecycle = lifecycle(
            settings, database=self._database, registry=registry, catalogue=lambda: self._fleet.catalogue
        )
        self._fleet = Fleet(registry, self._load, encoder=record.digest, history=self._lifecycle.promotions)
        self._tasks = [
            asyncio.create_task(self._fleet.follow(settings.registry_poll_seconds)),
            asyncio.create_task(self._lifecycle.evaluations.run()),
            asyncio.create_task(Housekeeping(self._database, space=settings.space).run()),
        ]

    async def watch(self, revision: int) -> Catalogue:
        """The catalogue once it differs from `revision`, or after a while as it stands."""
        return await self._fleet.watch(revision)

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

    async def check_health(self) -> None:
        """Restart this process if one of its loops ended, which none should."""
        if ended := [task for task in self._tasks if task.done()]:
            raise RuntimeError(f"a control loop ended: {ended[0]!r}")

    async def _load(self, version: VersionRecord) -> None:
        await self._encoder.load.remote(version)


class Ingress:
    """The HTTP door of the platform; counts as running once the champion answers."""

    async def __init__(self, encoder: DeploymentHandle, control: DeploymentHandle) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        from serving.control import RemoteLifecycle
        from serving.services import services

        settings = Settings()
        configure_logging(settings.log_level)
        self._control = control
        self._catalogue = Catalogue()
        self._exit = AsyncExitStack()
        encoders = RemoteEncoders(HandleCalls(encoder))
        self._services = await self._exit.enter_async_context(
            services(settings, encoders, lambda: self._catalogue, RemoteLifecycle(control))
        )
        async with asyncio.timeout(_FIRST_CATALOGUE_SECONDS):
            while await self._services.missing():
                await self._look()
        self._follower = asyncio.create_task(self._follow())

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """The application, over the services that are open by now."""
        from serving.api import create_api

        return create_api(self._services)

    async def _look(self) -> None:
        self._catalogue = await self._control.watch.remote(self._catalogue.revision)

    async def _follow(self) -> None:
        """Hold a question open at the control, for ever; while it is down the last catalogue goes on."""
        while True:
            try:
                await self._look()
            except Exception as error:
                # Whatever the remote side or the transport raises, the next question may be answered.
                log.warning("control.unreachable", error=str(error))
                await asyncio.sleep(1)

    async def __del__(self) -> None:
        self._follower.cancel()
        await self._exit.aclose()


def build(record: EncoderRecord, settings: Settings) -> Application:
    """The application graph for one encoder, sized by the settings."""
    drain: dict[str, Any] = {
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.1,
        "health_check_period_s": 5,
    }
    encoder = serve.deployment(EncoderReplica).options(
        name="encoder",
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
        ray_actor_options={"num_cpus": settings.encoder_cpus, "num_gpus": settings.encoder_gpus},
        **drain,
    )
    control = serve.deployment(Control).options(
        name="control",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.1},
        **drain,
    )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="ingress",
        num_replicas=settings.ingress_replicas,
        # Twice: HAProxy bounds the predictions, and whoever asks for something else still gets in.
        max_ongoing_requests=2 * settings.ingress_max_ongoing,
        ray_actor_options={"num_cpus": settings.ingress_cpus},
        **drain,
    )
    replicas = encoder.bind(record)
    return ingress.bind(replicas, control.bind(replicas, record))


def _encoder(bundle: Bundle, settings: Settings) -> Encoder:
    if settings.engine == "torch":
        return open_encoder(bundle, device=settings.device)
    engine = None if settings.engine == "auto" else Engine(settings.engine)
    return open_encoder(
        bundle, engine=engine, threads=settings.encoder_threads or len(os.sched_getaffinity(0))
    )
