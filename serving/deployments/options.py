"""The parts that every deployment shares: its listening address, its log and its drain."""

from typing import Any

from ray import serve

from serving.core.logs import configure_logging
from serving.deployments.ray_patches import listen_on_loopback
from serving.settings import Settings

# Each replica imports its deployment's module, and so this one, before it opens its port.
listen_on_loopback()


def start_logging(settings: Settings, process: str) -> str:
    """Set up this replica's log, and return the replica's name."""
    replica: str = serve.get_replica_context().replica_id.unique_id
    configure_logging(settings.log_level, process=process, file=settings.log_file, replica=replica)
    return replica


def drain_options(settings: Settings) -> dict[str, Any]:
    """Return the options for the end of a replica and the detection of its death."""
    return {
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.1,
        # Serve replaces a dead replica after its next check.
        "health_check_period_s": 1,
    }
