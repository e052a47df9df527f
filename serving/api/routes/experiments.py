"""Experiments: try a challenger next to the champion, watch it, change or stop it."""

from typing import Final
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request

from registry.experiments.decisions import PolicyDecision
from registry.experiments.policies import Policy
from serving.api.dependencies import Json, get_caller, get_services
from serving.api.schemas.experiments import (
    ExperimentChangeRequest,
    ExperimentListResponse,
    ExperimentRequest,
    ExperimentResponse,
    ExperimentStopRequest,
    ExperimentSummary,
)
from serving.api.security import GuardedRoute, Parsed, requires
from serving.core.caller import Role
from serving.experiments.service import ExperimentPlan, ExperimentReport

_ARMS: Final = ("champion", "challenger")

router = APIRouter(prefix="/v1/experiments", route_class=GuardedRoute, tags=["experiments"])


@router.post("", status_code=201, response_model=ExperimentResponse)
@requires(Role.ENGINEER, errors=(404, 409))
async def start_experiment(request: Request, body: Parsed[ExperimentRequest]) -> Json:
    """Try a challenger on a share of the units, or as a shadow of the champion."""
    new = ExperimentPlan(
        model=body.model,
        challenger=body.challenger,
        share=body.share,
        shadow=body.shadow,
        policy=body.policy or Policy(),
    )
    return _report(await get_services(request).experiments.start(new, get_caller(request)))


@router.get("", response_model=ExperimentListResponse)
@requires(Role.ENGINEER)
async def list_experiments(request: Request) -> Json:
    """List all experiments, newest first."""
    return {"items": await get_services(request).experiments.list()}


@router.get("/{experiment_id}", response_model=ExperimentResponse)
@requires(Role.ENGINEER, errors=(404, 422))
async def get_experiment(request: Request, experiment_id: UUID) -> Json:
    """Return an experiment, its arms, and the conclusion from them."""
    return _report(await get_services(request).experiments.get(experiment_id))


@router.patch("/{experiment_id}", response_model=ExperimentResponse)
@requires(Role.ENGINEER, errors=(404, 409))
async def change_experiment(
    request: Request, experiment_id: UUID, body: Parsed[ExperimentChangeRequest]
) -> Json:
    """Change the share or the policy."""
    report = await get_services(request).experiments.change(
        experiment_id, get_caller(request), share=body.share, policy=body.policy
    )
    return _report(report)


@router.post("/{experiment_id}/stop", response_model=ExperimentResponse)
@requires(Role.ENGINEER, errors=(404,), optional=True)
async def stop_experiment(request: Request, experiment_id: UUID, body: Parsed[ExperimentStopRequest]) -> Json:
    """Stop an experiment: the champion answers everything again."""
    report = await get_services(request).experiments.stop(experiment_id, get_caller(request), body.reason)
    return _report(report)


def _report(report: ExperimentReport) -> Json:
    present = report.conclusions[-1]
    return ExperimentSummary.model_validate(report.experiment).model_dump() | {
        "arms": [_arm(report, arm) for arm in _ARMS],
        "sample_ratio": {"p": present.numbers["sample_ratio_p"], "mismatch": present.verdict == "mismatch"},
        "verdict": _verdict(report.known) | {"explanation": report.explanation},
        "stages": [_stage(report, conclusion) for conclusion in report.conclusions],
        "decisions": report.decisions,
    }


def _verdict(conclusion: PolicyDecision) -> Json:
    numbers = conclusion.numbers
    return {
        "verdict": conclusion.verdict,
        "reason": conclusion.reason,
        "stage": numbers["stage"],
        "difference": numbers["difference"],
        "fault_increase": numbers["fault_increase"],
        "latency_ratio": numbers["latency_ratio"],
    }


def _stage(report: ExperimentReport, conclusion: PolicyDecision) -> Json:
    numbers = conclusion.numbers
    arms = [
        {
            "arm": _stored_arm(report, arm),
            "units": numbers[arm]["units"],
            "judged_units": numbers[arm]["judged_units"],
            "accuracy": numbers[arm]["accuracy"],
        }
        for arm in _ARMS
    ]
    return {
        "number": numbers["stage"],
        "share": numbers["share"],
        "verdict": conclusion.verdict,
        "reason": conclusion.reason,
        "difference": numbers["difference"],
        "arms": arms,
    }


def _stored_arm(report: ExperimentReport, arm: str) -> str:
    return "shadow" if report.experiment.shadow and arm == "challenger" else arm


def _arm(report: ExperimentReport, arm: str) -> Json:
    """Return an arm's answers in all stages, and its accuracy in the stage of the verdict."""
    experiment = report.experiment
    stored = _stored_arm(report, arm)
    rows = [row for row in report.counts.arms if row.arm == stored]
    numbers = report.known.numbers[arm]
    return {
        "arm": stored,
        "version": experiment.champion if arm == "champion" else experiment.challenger,
        "exposures": sum(row.answered for row in rows),
        "units": sum(row.units if stored == "shadow" else row.new_units for row in rows),
        "faults": sum(row.faults for row in rows),
        "feedback": sum(row.judged for row in rows),
        "accuracy": numbers["accuracy"],
        "p95_ms": numbers["p95_ms"],
    }
