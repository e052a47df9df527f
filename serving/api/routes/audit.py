"""The audit log: who did what, and when."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from db.accounts.audit import AuditFilters, AuditPage
from serving.api.dependencies import get_services
from serving.api.schemas.accounts import AuditQuery, AuditResponse
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role

router = APIRouter(route_class=GuardedRoute, tags=["audit"])


@router.get("/v1/audit", response_model=AuditResponse)
@requires(Role.ADMIN, errors=(422,))
async def audit(request: Request, query: Annotated[AuditQuery, Query()]) -> AuditPage:
    """List who did what, newest first."""
    filters = AuditFilters(**query.model_dump(exclude={"limit", "cursor"}))
    return await get_services(request).audit.list(filters, limit=query.limit, cursor=query.cursor)
