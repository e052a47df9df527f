"""The deployment of the ingress: FastAPI over the services, with the catalog that the control hands out."""

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog
from ray.serve.handle import DeploymentHandle

from serving.control.pool import handle_of
from serving.core.catalog import Catalog
from serving.deployments.options import start_logging
from serving.inference.replica_client import ReplicaClient, ReplicaHandle
from serving.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

_FIRST_CATALOG_SECONDS = 120.0
_TELL_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Ingress:
    """The HTTP door of the platform; counts as running once the champion answers."""

    async def __init__(self, control: DeploymentHandle) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        from serving.control.remote import RemoteLifecycle
        from serving.deployments.ingress_services import services

        settings = Settings()
        replica = start_logging(settings, "ingress")
        self._control = control
        self._catalog = Catalog()
        self._asked: set[tuple[str, str]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._exit = AsyncExitStack()
        self._services = await self._exit.enter_async_context(
            services(
                settings,
                lambda encoder, spans: ReplicaClient(ReplicaHandle(handle_of(encoder)), spans=spans),
                lambda: self._catalog,
                lambda model, version: self._asked.add((model, version)),
                RemoteLifecycle(control),
                replica=replica,
            )
        )
        async with asyncio.timeout(_FIRST_CATALOG_SECONDS):
            while await self._services.missing_parts():
                await self._look()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._tell())]

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """The application, over the services that are open by now."""
        from serving.api import create_api

        return create_api(self._services)

    async def _look(self) -> None:
        seen: Catalog = await self._control.watch.remote(self._catalog.revision)
        # A control that is new knows nothing for a moment.
        if seen.revision:
            self._catalog = seen

    async def _follow(self) -> None:
        """Hold a question open at the control, for ever; while it is down the last catalog goes on."""
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
