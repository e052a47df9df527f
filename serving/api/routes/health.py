"""Health: whether the process runs, and whether the platform is ready."""

from fastapi import APIRouter
from starlette.requests import Request

from serving.api.dependencies import get_services
from serving.api.schemas.health import HealthResponse
from serving.api.security import GuardedRoute, public
from serving.errors import NotReady

router = APIRouter(prefix="/health", route_class=GuardedRoute, tags=["health"])


@router.get("/live")
@public()
async def is_live() -> HealthResponse:
    """Answer if the process runs."""
    return HealthResponse(status="live")


@router.get("/ready")
@public(errors=(503,))
async def is_ready(request: Request) -> HealthResponse:
    """Answer with 200 if the platform is ready."""
    await require_ready(request)
    return HealthResponse(status="ready")


async def require_ready(request: Request) -> None:
    """Return if nothing is missing.

    Raises:
        NotReady: it names what is missing.
    """
    missing = await get_services(request).missing_parts()
    if missing:
        raise NotReady(f"not ready: {'; '.join(missing)}", retry_after=2)
