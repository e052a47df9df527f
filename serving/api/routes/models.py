"""Models: which versions are registered, which of them answer, what was measured of them, who is champion."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from db.models.evaluations import Evaluation
from db.models.promotions import ChampionPeriod
from serving.api import serializers
from serving.api.dependencies import Json, body_of, caller_of, services_of
from serving.api.schemas.control import (
    EvaluationAnswer,
    HistoryPage,
    HistoryQuery,
    ModelAnswer,
    ModelList,
    PromoteRequest,
    PromotionAnswer,
    RollbackRequest,
    VersionAnswer,
)
from serving.api.schemas.fields import parse
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.core.catalog import CatalogEntry
from serving.models.promotion import PromotionOutcome

router = APIRouter(route_class=GuardedRoute, tags=["models"])


@router.get("/v1/models", responses={200: {"model": ModelList}})
@requires(Role.ENGINEER)
async def models(request: Request) -> Response:
    """All models."""
    catalog = services_of(request).catalog()
    return serializers.json_response({"items": [{"name": name} for name in sorted(catalog.models)]})


@router.get("/v1/models/{name}", responses={200: {"model": ModelAnswer}})
@requires(Role.ENGINEER, errors=(404, 422))
async def model(request: Request, name: str) -> Response:
    """A model and its versions."""
    versions = services_of(request).catalog().versions(name)
    newest_first = sorted(versions, key=lambda version: (len(version), version), reverse=True)
    return serializers.json_response(
        {"name": name, "versions": [_version(version, versions[version]) for version in newest_first]}
    )


@router.get("/v1/models/{name}/versions/{version}", responses={200: {"model": VersionAnswer}})
@requires(Role.ENGINEER, errors=(404, 422))
async def version(request: Request, name: str, version: str) -> Response:
    """A version, its evaluations, and what the gates would say of it now."""
    found = await services_of(request).lifecycle.version(name, version)
    record = found.record
    return serializers.json_response(
        {
            "model": record.model,
            **_version(version, CatalogEntry(record=record, state=found.state, reason=found.reason)),
            "digest": record.digest,
            "created_at": record.created_at,
            "evaluations": [_evaluation(each) for each in found.evaluations],
            "gates": found.preview.dump(),
        }
    )


@router.post(
    "/v1/models/{name}/versions/{version}/evaluate",
    status_code=202,
    responses={202: {"model": EvaluationAnswer}},
)
@requires(Role.ENGINEER, errors=(404, 409, 422))
async def evaluate(request: Request, name: str, version: str) -> Response:
    """Measure a version, at background priority; the report is shown with the version."""
    found = await services_of(request).lifecycle.evaluate(name, version, caller_of(request))
    return serializers.json_response(_evaluation(found), 202)


@router.post(
    "/v1/models/{name}/versions/{version}/promote",
    responses={200: {"model": PromotionAnswer}},
)
@requires(Role.ENGINEER, body=PromoteRequest, errors=(404, 409), optional=True)
async def promote(request: Request, name: str, version: str) -> Response:
    """Make a version champion, if its stored report passes the gates."""
    body = parse(PromoteRequest, body_of(request))
    outcome = await services_of(request).lifecycle.promote(
        name, version, caller_of(request), force=body.force, reason=body.reason
    )
    return serializers.json_response(_outcome(outcome))


@router.post("/v1/models/{name}/rollback", responses={200: {"model": PromotionAnswer}})
@requires(Role.ENGINEER, body=RollbackRequest, errors=(404, 409), optional=True)
async def rollback(request: Request, name: str) -> Response:
    """Make the champion before this one answer again."""
    body = parse(RollbackRequest, body_of(request))
    outcome = await services_of(request).lifecycle.rollback(name, caller_of(request), reason=body.reason)
    return serializers.json_response(_outcome(outcome))


@router.get("/v1/models/{name}/history", responses={200: {"model": HistoryPage}})
@requires(Role.ENGINEER, errors=(404, 422))
async def history(request: Request, name: str, query: Annotated[HistoryQuery, Query()]) -> Response:
    """Who was champion, when, made so by whom and why, newest first."""
    page = await services_of(request).lifecycle.history(name, limit=query.limit, cursor=query.cursor)
    return serializers.json_response(
        {"items": [_reign(reign) for reign in page.items], "next_cursor": page.next_cursor}
    )


def _outcome(outcome: PromotionOutcome) -> Json:
    made = outcome.promotion
    return {
        "model": outcome.model,
        "version": outcome.version,
        "previous": outcome.version_from,
        "changed": outcome.changed,
        "act": made.act if made is not None else None,
        "forced": made is not None and made.forced,
        "gated": made is not None and made.gated,
        "report": outcome.report.dump() if outcome.report is not None else None,
    }


def _reign(reign: ChampionPeriod) -> Json:
    made = reign.promotion
    return {
        "version": made.version_to,
        "from": made.at,
        "to": reign.until,
        "by": made.actor,
        "act": made.act,
        "forced": made.forced,
        "gated": made.gated,
        "reason": made.reason,
        "evidence": made.evidence,
    }


def _evaluation(found: Evaluation) -> Json:
    return {
        "id": found.id,
        "version": found.version,
        "bundle": found.bundle_digest,
        "data": found.data_digest,
        "state": found.state,
        "reason": found.reason,
        "requested_by": found.requested_by,
        "created_at": found.created_at,
        "finished_at": found.finished_at,
        "report": found.report,
    }


def _version(version: str, entry: CatalogEntry) -> Json:
    record = entry.record
    content: Json = {
        "version": version,
        "aliases": list(record.aliases),
        "kind": record.kind,
        "encoder": record.encoder,
        "metrics": dict(record.metrics),
        "state": entry.state,
    }
    if entry.reason is not None:
        content["reason"] = entry.reason
    return content
