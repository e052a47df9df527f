"""The deployment of an encoder, and the application that runs it."""

import os
from pathlib import Path

import structlog
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import Engine
from registry.store.records import EncoderRecord, VersionRecord
from serving.control.pool import DEPLOYMENT
from serving.core.connections import build_registry
from serving.core.home import Home
from serving.core.tracing import build_spans
from serving.deployments.carried_settings import CarriedSettings, receive_settings
from serving.deployments.options import drain_options, start_logging
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder
from serving.inference.replica import Replica
from serving.settings import Settings

_LOOK_BACK_SECONDS = 30.0
_CONSTRUCTOR_TRIES = 3

log = structlog.get_logger(__name__)


class EncoderReplica(Replica):
    """One encoder with the heads of its versions; it is warm before it counts as running."""

    def __init__(self, record: EncoderRecord, carried: CarriedSettings | None = None) -> None:
        settings = receive_settings(carried)
        replica = start_logging(settings, "encoder")
        # The computing threads inherit the niceness, so that the ingress and the database go first.
        os.nice(settings.encoder_niceness)
        registry = build_registry(settings)
        cache = Home(settings.home).cache
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
            spans=build_spans(settings.otlp_endpoint, process="encoder", replica=replica),
        )
        if not warm.complete:
            self.warm_up_when_idle()


def encoder_application(
    record: EncoderRecord, settings: Settings, carried: CarriedSettings | None = None
) -> Application:
    """Build the application of an encoder, sized by the settings."""
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
        # The batcher bounds what is in flight, so that a replica never refuses an admitted batch.
        max_ongoing_requests=2 * settings.slots * settings.ingress_replicas + 4,
        max_constructor_retry_count=_CONSTRUCTOR_TRIES,
        ray_actor_options={"num_cpus": settings.encoder_cpus, "num_gpus": settings.encoder_gpus},
        **drain_options(settings),
    )
    return encoder.bind(record, carried)


def _encoder(bundle: Bundle, settings: Settings) -> Encoder:
    if settings.engine == "torch":
        return open_encoder(bundle, device=settings.device)
    engine = None if settings.engine == "auto" else Engine(settings.engine)
    return open_encoder(
        bundle, engine=engine, threads=settings.encoder_threads or len(os.sched_getaffinity(0))
    )
