"""Composition root of the serving processes: Settings in, Serve applications out.

The platform's application is the ingress (FastAPI and gateway) and the control (fleet and housekeeping, one per
cluster), which starts an application of its own for each encoder that is needed. `valence up` and a RayService manifest
deploy the same `build`. Each process imports what its own deployment needs, because imports are most of a start.
"""

from ray import serve
from ray.serve import Application

from serving.deployments.control import Control
from serving.deployments.ingress import Ingress
from serving.deployments.options import drain_options
from serving.settings import Settings


def build(settings: Settings) -> Application:
    """The platform's application, sized by the settings."""
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
        # Twice: HAProxy bounds the predictions, and whoever asks for something else still gets in.
        max_ongoing_requests=2 * settings.ingress_max_ongoing,
        ray_actor_options={"num_cpus": settings.ingress_cpus},
        **drain_options(settings),
    )
    return ingress.bind(control.bind())
