"""The deployment of the ingress: FastAPI over the services, with the catalog of the control."""

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NoReturn

from ray.serve.handle import DeploymentHandle

from serving.control.pool import handle_of
from serving.core.caller import Role
from serving.core.catalog import Catalog
from serving.core.periodic import run_periodically
from serving.deployments.carried_settings import CarriedSettings, receive_settings
from serving.deployments.options import start_logging
from serving.deployments.request_guard import CALLBACK_VARIABLE, RequestIdLeftToRay, serve_health_directly
from serving.inference.replica_client import ReplicaClient, ReplicaHandle

if TYPE_CHECKING:
    from fastapi import FastAPI

_FIRST_CATALOG_SECONDS = 120.0
_REQUEST_VERSIONS_SECONDS = 1.0


class Ingress:
    """Serves HTTP; counts as running once the champion answers."""

    async def __init__(self, control: DeploymentHandle, carried: CarriedSettings | None = None) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY

        from serving.control.remote import connect_lifecycle
        from serving.deployments.ingress_services import services

        settings = receive_settings(carried)
        replica = start_logging(settings, "ingress")
        self._control = control
        self._catalog = Catalog()
        self._named: set[tuple[str, str, bool]] = set()
        self._tasks: list[asyncio.Task[NoReturn]] = []
        self._exit = AsyncExitStack()
        self._services = await self._exit.enter_async_context(
            services(
                settings,
                lambda encoder, spans: ReplicaClient(ReplicaHandle(handle_of(encoder)), spans=spans),
                lambda: self._catalog,
                lambda model, version, role: self._named.add((model, version, role is Role.CLIENT)),
                connect_lifecycle(control, seconds=settings.request_seconds),
                replica=replica,
                behind_haproxy=RAY_SERVE_ENABLE_HA_PROXY,
            )
        )
        async with asyncio.timeout(_FIRST_CATALOG_SECONDS):
            while await self._services.missing_parts():
                await self._update_catalog()
        loops = (
            # The control answers once its catalog changes; while it is down, the last catalog is used.
            run_periodically(
                self._update_catalog, every=0, after_error=1, errors=Exception, event="control.unreachable"
            ),
            run_periodically(
                self._request_versions,
                every=_REQUEST_VERSIONS_SECONDS,
                pause_first=True,
                errors=Exception,
                event="control.unreachable",
            ),
        )
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Build the application over the opened services."""
        from serving.api import create_api

        application = create_api(self._services)
        if CALLBACK_VARIABLE not in os.environ:
            application.add_middleware(RequestIdLeftToRay)
        serve_health_directly(application)
        return application

    async def _update_catalog(self) -> None:
        catalog: Catalog = await self._control.watch.remote(self._catalog.revision)
        # A new control has an empty catalog for a moment.
        if catalog.revision:
            self._catalog = catalog

    async def _request_versions(self) -> None:
        """Tell the control which versions were named since the last time."""
        named, self._named = self._named, set()
        # After a failure, whoever still needs a version names it again.
        for by_clients in (False, True):
            if versions := sorted((model, version) for model, version, flag in named if flag is by_clients):
                await self._control.request_versions.remote(versions, by_clients=by_clients)

    async def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._exit.aclose()
