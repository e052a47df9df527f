"""Composition root of the serving processes: builds the Serve application from the settings.

The application has an ingress (FastAPI and the services) and one control per cluster (reconciler and maintenance),
which starts a separate application for each encoder in use. `valence up` and a RayService manifest deploy the same
application. Each process imports only what its own deployment needs, because imports take most of a start.
"""

from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from serving.deployments.carried_settings import CarriedSettings
from serving.deployments.control import Control
from serving.deployments.ingress import Ingress
from serving.deployments.options import drain_options
from serving.settings import Settings


def build(settings: Settings) -> Application:
    """Build the platform's application for nodes that have their own settings, as a RayService manifest calls it."""
    return build_with(settings, None)


def build_with(settings: Settings, carried: CarriedSettings | None) -> Application:
    """Build the platform's application, sized by the settings; None: its nodes have their own."""
    control = serve.deployment(Control).options(
        name="control",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.1},
        **drain_options(settings),
    )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name="ingress",
        num_replicas=settings.ingress_replicas,
        # Twice, because HAProxy bounds the predictions, and other requests shall still be admitted.
        max_ongoing_requests=2 * settings.ingress_max_ongoing,
        max_queued_requests=settings.ingress_max_ongoing,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": settings.ingress_cpus},
        **drain_options(settings),
    )
    return ingress.bind(control.bind(carried), carried)
