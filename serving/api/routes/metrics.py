"""The metrics page, for engineers or, by setting, for everybody."""

from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api.dependencies import services_of
from serving.api.security import GuardedRoute, public, requires
from serving.core.caller import Role
from serving.monitoring.metrics import CONTENT_TYPE


def router(*, is_open: bool) -> APIRouter:
    """The route, with the role that the setting gives it."""
    made = APIRouter(route_class=GuardedRoute, tags=["health"])
    declared: Callable[[Callable[..., object]], Callable[..., object]] = (
        public() if is_open else requires(Role.ENGINEER)
    )

    async def metrics(request: Request) -> Response:
        """Metrics in Prometheus' format."""
        content = services_of(request).metrics.render()
        return Response(content, headers={"Content-Type": CONTENT_TYPE})

    made.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
        summary="Metrics in Prometheus' format",
    )(declared(metrics))
    return made
