"""The metrics page, for engineers or, if a setting allows it, for everyone."""

from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api.dependencies import get_services
from serving.api.security import GuardedRoute, public, requires
from serving.core.caller import Role
from serving.monitoring.metrics import CONTENT_TYPE


def router(*, is_open: bool) -> APIRouter:
    """Build the route with the role that the setting requires."""
    routes = APIRouter(route_class=GuardedRoute, tags=["health"])
    declare: Callable[[Callable[..., object]], Callable[..., object]] = (
        public() if is_open else requires(Role.ENGINEER)
    )

    async def get_metrics(request: Request) -> Response:
        """Return the metrics in Prometheus' format."""
        content = get_services(request).metrics.render()
        return Response(content, headers={"Content-Type": CONTENT_TYPE})

    routes.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
    )(declare(get_metrics))
    return routes
