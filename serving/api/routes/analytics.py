"""What the whole memory shows: topics, drift, where versions differ, what to judge next."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from serving.analytics.results import TimeRange
from serving.api import serializers
from serving.api.dependencies import services_of
from serving.api.middleware import while_connected
from serving.api.schemas.insights import (
    DiffAnswer,
    DiffQuery,
    DriftAnswer,
    DriftQuery,
    ReviewAnswer,
    ReviewQuery,
    TopicsAnswer,
    TopicsQuery,
)
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role

router = APIRouter(prefix="/v1", route_class=GuardedRoute, tags=["insights"])


@router.get("/topics", responses={200: {"model": TopicsAnswer}})
@requires(Role.ENGINEER, errors=(404, 422, 429))
async def topics(request: Request, query: Annotated[TopicsQuery, Query()]) -> Response:
    """What the texts of a window are about."""
    services = services_of(request)
    span = TimeRange(since=query.since, until=query.until)
    found = await while_connected(
        request.receive, services.analytics.find_topics(query.model, span, most=query.topics)
    )
    return serializers.json_response(serializers.topics(found))


@router.get("/review", responses={200: {"model": ReviewAnswer}})
@requires(Role.ENGINEER, errors=(404, 422, 429))
async def review(request: Request, query: Annotated[ReviewQuery, Query()]) -> Response:
    """The texts whose feedback would teach most."""
    services = services_of(request)
    span = TimeRange(since=query.since, until=query.until)
    found = await while_connected(
        request.receive, services.analytics.select_for_review(query.model, span, most=query.limit)
    )
    return serializers.json_response(serializers.review(found))


@router.get("/models/{name}/diff", responses={200: {"model": DiffAnswer}})
@requires(Role.ENGINEER, errors=(404, 422, 429))
async def diff(request: Request, name: str, query: Annotated[DiffQuery, Query()]) -> Response:
    """The texts on which two versions differ, by meaning."""
    found = await while_connected(
        request.receive,
        services_of(request).analytics.compare_versions(
            name,
            query.version_from,
            query.version_to,
            TimeRange(since=query.since, until=query.until),
            one_label=query.was,
            other_label=query.now,
            most=query.clusters,
        ),
    )
    return serializers.json_response(serializers.diff(found, query.version_from, query.version_to))


@router.get("/drift", responses={200: {"model": DriftAnswer}})
@requires(Role.ENGINEER, errors=(404, 422, 429))
async def drift(request: Request, query: Annotated[DriftQuery, Query()]) -> Response:
    """How a window differs from a reference."""
    services = services_of(request)
    found = await while_connected(
        request.receive,
        services.analytics.measure_drift(
            query.model,
            TimeRange(since=query.since, until=query.until),
            TimeRange(since=query.reference_since, until=query.reference_until),
            most=query.limit,
        ),
    )
    return serializers.json_response(serializers.drift(found))
