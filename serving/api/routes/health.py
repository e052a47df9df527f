"""Health: whether the process runs, and whether the platform answers."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api import serializers
from serving.api.dependencies import services_of
from serving.api.schemas.control import HealthAnswer
from serving.api.security import GuardedRoute, public
from serving.errors import NotReady

router = APIRouter(prefix="/health", route_class=GuardedRoute, tags=["health"])


@router.get("/live", responses={200: {"model": HealthAnswer}})
@public()
async def live() -> Response:
    """Whether the process runs."""
    return serializers.json_response({"status": "live"})


@router.get("/ready", responses={200: {"model": HealthAnswer}})
@public(errors=(503,))
async def ready(request: Request) -> Response:
    """Whether the platform answers."""
    await when_ready(request)
    return serializers.json_response({"status": "ready"})


async def when_ready(request: Request) -> None:
    """Return if nothing is missing.

    Raises:
        NotReady: it names what is.
    """
    missing = await services_of(request).missing_parts()
    if missing:
        raise NotReady(f"not ready: {'; '.join(missing)}", retry_after=2)
