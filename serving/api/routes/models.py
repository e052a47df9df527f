"""Models: their versions, evaluations and champions."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from db.models.evaluations import Evaluation
from db.models.promotions import ChampionPeriod, ChampionPeriodPage
from serving.api.dependencies import Json, get_caller, get_services
from serving.api.schemas.models import (
    ChampionPeriodResponse,
    ChampionQuery,
    EvaluationResponse,
    HistoryQuery,
    HistoryResponse,
    ModelListResponse,
    ModelResponse,
    PromoteRequest,
    PromotionResponse,
    RollbackRequest,
    VersionResponse,
)
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role
from serving.core.catalog import Catalog
from serving.models.promotion import PromotionOutcome, VersionDetail

router = APIRouter(prefix="/v1/models", route_class=GuardedRoute, tags=["models"])


@router.get("", response_model=ModelListResponse)
@requires(Role.ENGINEER)
async def list_models(request: Request) -> Json:
    """List all models."""
    catalog = get_services(request).catalog()
    names = sorted(catalog.models)
    spaces = [catalog.space] if catalog.space is not None and _is_space(catalog, catalog.space) else []
    return {
        "items": [{"name": name, "languages": catalog.languages(name)} for name in names],
        "data": [_describe(catalog, name) for name in names + spaces],
    }


@router.get("/{name}", response_model=ModelResponse)
@requires(Role.ENGINEER, errors=(404, 422))
async def get_model(request: Request, name: str) -> Json:
    """Return a model and its versions."""
    catalog = get_services(request).catalog()
    versions = {} if _is_space(catalog, name) else catalog.versions(name)
    newest_first = sorted(versions, key=lambda version: (len(version), version), reverse=True)
    return _describe(catalog, name) | {
        "name": name,
        "versions": [versions[version] for version in newest_first],
    }


@router.get("/{name}/versions/{version}", response_model=VersionResponse)
@requires(Role.ENGINEER, errors=(404, 422))
async def get_version(request: Request, name: str, version: str) -> VersionDetail:
    """Return a version, its evaluations, and the gates' result if it were promoted now."""
    return await get_services(request).lifecycle.version(name, version)


@router.post("/{name}/versions/{version}/evaluate", status_code=202, response_model=EvaluationResponse)
@requires(Role.ENGINEER, errors=(404, 409, 422))
async def evaluate_version(request: Request, name: str, version: str) -> Evaluation:
    """Evaluate a version in the background; the version's route shows the report."""
    return await get_services(request).lifecycle.evaluate(name, version, get_caller(request))


@router.post("/{name}/versions/{version}/promote", response_model=PromotionResponse)
@requires(Role.ENGINEER, errors=(404, 409), optional=True)
async def promote_version(request: Request, name: str, version: str, body: Parsed[PromoteRequest]) -> Json:
    """Make a version champion, if its stored report passes the gates."""
    outcome = await get_services(request).lifecycle.promote(
        name, version, get_caller(request), force=body.force, reason=body.reason
    )
    return _promotion(outcome)


@router.post("/{name}/rollback", response_model=PromotionResponse)
@requires(Role.ENGINEER, errors=(404, 409), optional=True)
async def roll_back(request: Request, name: str, body: Parsed[RollbackRequest]) -> Json:
    """Make the previous champion answer again."""
    outcome = await get_services(request).lifecycle.rollback(name, get_caller(request), reason=body.reason)
    return _promotion(outcome)


@router.get("/{name}/history", response_model=HistoryResponse)
@requires(Role.ENGINEER, errors=(404, 422))
async def list_champions(
    request: Request, name: str, query: Annotated[HistoryQuery, Query()]
) -> ChampionPeriodPage:
    """List a model's champions, newest first: when, by whom and why."""
    return await get_services(request).lifecycle.history(name, limit=query.limit, cursor=query.cursor)


@router.get("/{name}/champion", response_model=ChampionPeriodResponse)
@requires(Role.ENGINEER, errors=(404, 422))
async def get_champion(
    request: Request, name: str, query: Annotated[ChampionQuery, Query()]
) -> ChampionPeriod:
    """Return the champion of a moment: since when, by whom and why."""
    return await get_services(request).lifecycle.champion_at(name, query.at or datetime.now(UTC))


def _is_space(catalog: Catalog, name: str) -> bool:
    """Return whether the name is the live space's, which OpenAI's clients take for a model, and no model's."""
    return name == catalog.space and name not in catalog.models


def _describe(catalog: Catalog, name: str) -> Json:
    """Describe a model, or the space, as OpenAI does: as old as its first version, or the first that computes it."""
    created = [
        entry.record.created_at.timestamp()
        for model, versions in catalog.models.items()
        for entry in versions.values()
        if model == name or (_is_space(catalog, name) and entry.record.encoder in catalog.space_encoders)
    ]
    return {"id": name, "created": int(min(created, default=0))}


def _promotion(outcome: PromotionOutcome) -> Json:
    promotion = outcome.promotion
    return {
        "model": outcome.model,
        "version": outcome.version,
        "previous": outcome.version_from,
        "changed": outcome.changed,
        "act": promotion.act if promotion is not None else None,
        "forced": promotion is not None and promotion.forced,
        "gated": promotion is not None and promotion.gated,
        "report": outcome.report,
    }
