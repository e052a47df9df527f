"""The pool of encoders: one Ray Serve application for each running encoder.

Starts, queries and stops them, but never decides which run. An application outlives this process, and the next process
finds it.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.api import RunTarget
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from registry.store.records import EncoderRecord, VersionRecord
from serving.core.catalog import short_digest
from serving.errors import NotReady

APPLICATION = "valence"
DEPLOYMENT = "encoder"

_PREFIX = "encoder-"
_NAME = re.compile(_PREFIX + "[0-9a-f]{16}")
_LOAD_SECONDS = 60.0
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
# Ray Serve also says that a replica starts slowly, which is no reason.
_TROUBLE = "failed to start"
_NO_ROOM = re.compile(
    r"to be scheduled\b.*required for each replica: (\{.*?\}), total resources available: (\{.*?\})",
    re.DOTALL,
)


class EncoderStatus(StrEnum):
    """The status of an encoder's replicas."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderReplicas:
    """An encoder's replicas: their status, the reason of a failure, and their number in each of Ray Serve's states."""

    status: EncoderStatus
    reason: str | None = None
    replicas: Mapping[str, int] = field(default_factory=dict)


def build_run_target(record: EncoderRecord, application: Application) -> RunTarget:
    """Build the application of an encoder as Ray Serve runs it, without a route."""
    return RunTarget(application, name=_PREFIX + short_digest(record.digest), route_prefix=None)


def is_encoder_application(name: str) -> bool:
    """Return whether an application bears the name of an encoder."""
    return _NAME.fullmatch(name) is not None


def find_reason(applications: Mapping[str, Any]) -> str | None:
    """Return why a replica of the platform doesn't start, by Ray Serve's status; None if nothing is known.

    The ingress comes last, because it waits for the others.
    """
    reasons = {
        deployment: reason
        for name, application in applications.items()
        if name == APPLICATION or is_encoder_application(name)
        for deployment, each in application.deployments.items()
        if (reason := _explain(each.message)) is not None
    }
    for deployment in sorted(reasons, key=lambda each: each == "ingress"):
        return f"the {deployment} doesn't start: {reasons[deployment]}"
    return None


def _explain(message: str) -> str | None:
    if _TROUBLE in message:
        return _last_line(message)
    if no_room := _NO_ROOM.search(message):
        needed, free = no_room.groups()
        return f"Ray has no room for it: a replica needs {needed}, and {free} is free: add nodes, or end what uses them"
    return None


def handle_of(digest: str) -> DeploymentHandle:
    """Return the handle of an encoder's replicas, whether they run or not."""
    return serve.get_deployment_handle(
        DEPLOYMENT, app_name=_PREFIX + short_digest(digest), _check_exists=False, _record_telemetry=False
    )


@dataclass(frozen=True, slots=True)
class ServePool:
    """The encoders on this Ray cluster, by short digest.

    Args:
        build: builds the application of an encoder.
        verify: fetches an encoder's bundle to this machine and raises unless it is intact.
    """

    build: Callable[[EncoderRecord], Application]
    verify: Callable[[EncoderRecord], object]

    async def states(self) -> Mapping[str, EncoderReplicas]:
        """Return the replicas of every encoder that has an application, by short digest."""
        applications = await asyncio.to_thread(_read_applications)
        return {
            name.removeprefix(_PREFIX): replace(
                _state(_name(each["status"]), each["message"]), replicas=_count_replicas(each)
            )
            for name, each in applications.items()
            if is_encoder_application(name)
        }

    async def start(self, record: EncoderRecord) -> None:
        """Start the replicas of an encoder, without waiting until they run.

        Raises:
            RegistryError: its bundle can't be fetched or isn't intact.
        """
        await asyncio.to_thread(self.verify, record)
        await asyncio.to_thread(
            serve.run_many,
            [build_run_target(record, self.build(record))],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    async def stop(self, name: str) -> None:
        """Drain and stop the replicas of an encoder, by its short digest."""
        await asyncio.to_thread(serve.delete, _PREFIX + name, _blocking=False)

    async def load(self, digest: str, version: VersionRecord) -> None:
        """Load a version on every replica of an encoder, and let each replica try it.

        Raises:
            NotReady: no replica answers.
            Exception: the error of the first replica that could not load it.
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


def _read_applications() -> Mapping[str, Any]:
    """Return the details of Ray Serve's applications by name, as its controller sends them.

    `serve.status` makes its own values of them, which takes nine times as long.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    applications: Mapping[str, Any] = {} if client is None else client.get_serve_details()["applications"]
    return applications


def _count_replicas(application: Mapping[str, Any]) -> dict[str, int]:
    replicas = application["deployments"].get(DEPLOYMENT, {}).get("replicas", ())
    return dict(Counter(_name(each["state"]).lower() for each in replicas))


def _name(state: Any) -> str:
    """Return the name of one of Ray Serve's states, whether it comes as a member of an enumeration or not."""
    return str(getattr(state, "value", state))


def _last_line(message: str) -> str:
    """Return the last line of a message, which is the error at the end of a traceback; without passwords of URLs."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return _USERINFO.sub("***@", lines[-1]) if lines else ""


def _state(status: str, message: str) -> EncoderReplicas:
    match status:
        # Ray Serve replaces the replicas of an unhealthy application, and the others answer meanwhile.
        case "RUNNING" | "UNHEALTHY":
            return EncoderReplicas(status=EncoderStatus.RUNNING)
        case "DELETING":
            return EncoderReplicas(status=EncoderStatus.STOPPING)
        case "DEPLOY_FAILED":
            return EncoderReplicas(
                status=EncoderStatus.FAILED, reason=_last_line(message) or "it does not start"
            )
        case _:
            return EncoderReplicas(status=EncoderStatus.STARTING)
