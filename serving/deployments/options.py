"""What every deployment shares: where it listens, its log, and how long it drains."""

from typing import Any

from ray import serve

from serving.core.logs import configure_logging
from serving.deployments.ray_patches import listen_on_loopback
from serving.settings import Settings

# Each replica imports the module of its deployment, and with it this one, before its port is opened.
listen_on_loopback()


def start_logging(settings: Settings, process: str) -> str:
    """Set up this replica's log; the replica's name."""
    replica: str = serve.get_replica_context().replica_id.unique_id
    configure_logging(settings.log_level, process=process, file=settings.log_file, replica=replica)
    return replica


def drain_options(settings: Settings) -> dict[str, Any]:
    """How a replica ends, and how soon its death is seen."""
    return {
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.1,
        # A replica that died is missed at the next look, and only then is another one started.
        "health_check_period_s": 1,
    }
