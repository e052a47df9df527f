"""Analytics of many predictions: topics, drift, differences between versions, the review queue."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from registry.bundles.bundle import LABELS
from serving.analytics.results import TimeRange, Topics
from serving.api.dependencies import Json, get_services
from serving.api.middleware import while_connected
from serving.api.schemas.analytics import (
    DiffQuery,
    DiffResponse,
    DriftQuery,
    DriftResponse,
    ExampleText,
    ReviewQuery,
    ReviewResponse,
    TopicsQuery,
    TopicsResponse,
)
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role

router = APIRouter(prefix="/v1", route_class=GuardedRoute, tags=["insights"])


@router.get("/topics", response_model=TopicsResponse)
@requires(Role.ENGINEER, errors=(404, 422), reads=10)
async def find_topics(request: Request, query: Annotated[TopicsQuery, Query()]) -> Topics:
    """Group the texts of a window by meaning."""
    span = TimeRange(since=query.since, until=query.until)
    return await while_connected(
        request.receive,
        get_services(request).in_space().analytics.find_topics(query.model, span, most=query.topics),
    )


@router.get("/review", response_model=ReviewResponse)
@requires(Role.ENGINEER, errors=(404, 422), reads=10)
async def list_review(request: Request, query: Annotated[ReviewQuery, Query()]) -> Json:
    """List the texts whose feedback would teach most."""
    span = TimeRange(since=query.since, until=query.until)
    result = await while_connected(
        request.receive,
        get_services(request).in_space().analytics.select_for_review(query.model, span, most=query.limit),
    )
    return {
        "model": result.model,
        **asdict(result.window),
        "coverage": result.coverage,
        "candidates": result.candidates,
        "judged": result.judged,
        "items": [
            ExampleText.model_validate(each.text).model_dump()
            | {name: getattr(each, name) for name in ("score", "uncertainty", "density", "disagreement")}
            for each in result.items
        ],
    }


@router.get("/models/{name}/diff", response_model=DiffResponse)
@requires(Role.ENGINEER, errors=(404, 422), reads=10)
async def compare_versions(request: Request, name: str, query: Annotated[DiffQuery, Query()]) -> Json:
    """Group the texts that two versions predict differently by meaning."""
    result = await while_connected(
        request.receive,
        get_services(request)
        .in_space()
        .analytics.compare_versions(
            name,
            query.version_from,
            query.version_to,
            TimeRange(since=query.since, until=query.until),
            one_label=query.was,
            other_label=query.now,
            most=query.clusters,
        ),
    )
    return {
        "model": result.model,
        "version_from": query.version_from,
        "version_to": query.version_to,
        **asdict(result.window),
        "compared": sum(result.matrix.values()),
        "differing": sum(texts for (before, after), texts in result.matrix.items() if before != after),
        "matrix": {
            before: {after: result.matrix.get((before, after), 0) for after in LABELS} for before in LABELS
        },
        "sampled": result.sampled,
        "clusters": result.clusters,
        "complete": result.complete,
    }


@router.get("/drift", response_model=DriftResponse)
@requires(Role.ENGINEER, errors=(404, 422), reads=10)
async def measure_drift(request: Request, query: Annotated[DriftQuery, Query()]) -> Json:
    """Compare a window with a reference."""
    result = await while_connected(
        request.receive,
        get_services(request)
        .in_space()
        .analytics.measure_drift(
            query.model,
            TimeRange(since=query.since, until=query.until),
            TimeRange(since=query.reference_since, until=query.reference_until),
            most=query.limit,
        ),
    )
    return {
        "model": result.model,
        "window": result.recent,
        "reference": result.reference,
        "embeddings": result.embeddings,
        "reason": result.reason,
        "stability": {"sentiments": result.labels, "confidences": result.confidences},
        "new": result.novel,
    }
