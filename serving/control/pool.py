"""The pool: one Ray Serve application for each encoder that runs. Starts, asks and stops them; never says which.

An application lives on when this process dies, and whoever comes next finds it.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.api import RunTarget
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from registry.store.records import EncoderRecord, VersionRecord
from serving.core.catalog import short_digest
from serving.errors import NotReady

DEPLOYMENT = "encoder"

_PREFIX = "encoder-"
_LOAD_SECONDS = 60.0


class EncoderStatus(StrEnum):
    """How far an encoder's replicas are."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderState:
    """How far an encoder's replicas are, why they failed, and how many are in each of Ray Serve's states."""

    running: EncoderStatus
    reason: str | None = None
    replicas: Mapping[str, int] = field(default_factory=dict)


def target(record: EncoderRecord, application: Application) -> RunTarget:
    """The application of an encoder, as Ray Serve runs it: no route leads to it."""
    return RunTarget(application, name=_PREFIX + short_digest(record.digest), route_prefix=None)


def handle_of(digest: str) -> DeploymentHandle:
    """The replicas of an encoder, whether they run or not."""
    return serve.get_deployment_handle(
        DEPLOYMENT, app_name=_PREFIX + short_digest(digest), _check_exists=False, _record_telemetry=False
    )


class ServePool:
    """Encoders on this Ray cluster, by short name.

    Args:
        build: the application of an encoder.
        verify: fetches an encoder's bundle here and raises if it isn't what it should be.
    """

    def __init__(
        self, build: Callable[[EncoderRecord], Application], verify: Callable[[EncoderRecord], object]
    ) -> None:
        self._build = build
        self._verify = verify

    async def states(self) -> Mapping[str, EncoderState]:
        """Every encoder that there is an application for."""
        found = await asyncio.to_thread(serve.status)
        return {
            name.removeprefix(_PREFIX): replace(
                _state(each.status.value, each.message), replicas=_replicas(each.deployments)
            )
            for name, each in found.applications.items()
            if name.startswith(_PREFIX)
        }

    async def start(self, record: EncoderRecord) -> None:
        """Have its replicas start; `states` says how far they are.

        Raises:
            RegistryError: its bundle can't be fetched, or isn't what it should be.
        """
        await asyncio.to_thread(self._verify, record)
        await asyncio.to_thread(
            serve.run_many,
            [target(record, self._build(record))],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    async def stop(self, name: str) -> None:
        """Drain and end its replicas."""
        await asyncio.to_thread(serve.delete, _PREFIX + name, _blocking=False)

    async def load(self, digest: str, version: VersionRecord) -> None:
        """Load and try a version on every replica of an encoder.

        Raises:
            NotReady: no replica answers.
            Exception: what the first replica that refused it raised.
        """
        call: Any = handle_of(digest).options(_by_reference=False).broadcast("load", version)
        try:
            answers = await call.results_async(timeout_s=_LOAD_SECONDS)
        except (RayServeException, TimeoutError) as error:
            raise NotReady(f"the encoder's replicas don't answer ({type(error).__name__})") from error
        except RayError as error:
            raise getattr(error, "cause", None) or error from None
        if not answers:
            raise NotReady("the encoder has no replica yet")


def _replicas(deployments: Mapping[str, Any]) -> dict[str, int]:
    found = deployments.get(DEPLOYMENT)
    # Declared as an enumeration, and in truth its names.
    counts = {} if found is None else found.replica_states
    return {str(getattr(state, "value", state)).lower(): count for state, count in counts.items()}


def _state(status: str, message: str) -> EncoderState:
    match status:
        # One whose replicas died is being mended, and those that are left answer.
        case "RUNNING" | "UNHEALTHY":
            return EncoderState(running=EncoderStatus.RUNNING)
        case "DELETING":
            return EncoderState(running=EncoderStatus.STOPPING)
        case "DEPLOY_FAILED":
            lines = [line.strip() for line in message.splitlines() if line.strip()]
            return EncoderState(
                running=EncoderStatus.FAILED, reason=lines[-1] if lines else "it does not start"
            )
        case _:
            return EncoderState(running=EncoderStatus.STARTING)
