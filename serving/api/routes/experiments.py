"""Experiments: try a challenger beside the champion, watch what comes of it, change or stop it."""

from dataclasses import asdict
from uuid import UUID

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from db.experiments.experiments import Decision, Experiment
from registry.experiments.policies import Policy
from serving.api import serializers
from serving.api.dependencies import Json, body_of, caller_of, services_of
from serving.api.schemas.experiments import (
    ExperimentAnswer,
    ExperimentChange,
    ExperimentList,
    ExperimentRequest,
    ExperimentStop,
)
from serving.api.schemas.fields import parse
from serving.api.security import GuardedRoute, requires
from serving.core.caller import Role
from serving.experiments.service import ExperimentPlan, ExperimentReport

router = APIRouter(prefix="/v1/experiments", route_class=GuardedRoute, tags=["experiments"])


@router.post("", status_code=201, responses={201: {"model": ExperimentAnswer}})
@requires(Role.ENGINEER, body=ExperimentRequest, errors=(404, 409))
async def start(request: Request) -> Response:
    """Try a challenger on a share of the units, or in the shadow of the champion."""
    body = parse(ExperimentRequest, body_of(request))
    asked = ExperimentPlan(
        model=body.model,
        challenger=body.challenger,
        share=body.share,
        shadow=body.shadow,
        policy=body.policy or Policy(),
    )
    return _answer(await services_of(request).experiments.start(asked, caller_of(request)), 201)


@router.get("", responses={200: {"model": ExperimentList}})
@requires(Role.ENGINEER)
async def experiments(request: Request) -> Response:
    """All experiments, newest first."""
    found = await services_of(request).experiments.list()
    return serializers.json_response({"items": [_experiment(each) for each in found]})


@router.get("/{experiment_id}", responses={200: {"model": ExperimentAnswer}})
@requires(Role.ENGINEER, errors=(404, 422))
async def experiment(request: Request, experiment_id: UUID) -> Response:
    """An experiment, with what its arms did and what follows from it."""
    return _answer(await services_of(request).experiments.get(experiment_id))


@router.patch("/{experiment_id}", responses={200: {"model": ExperimentAnswer}})
@requires(Role.ENGINEER, body=ExperimentChange, errors=(404, 409))
async def change(request: Request, experiment_id: UUID) -> Response:
    """Change the share or the policy."""
    body = parse(ExperimentChange, body_of(request))
    found = await services_of(request).experiments.change(
        experiment_id, caller_of(request), share=body.share, policy=body.policy
    )
    return _answer(found)


@router.post("/{experiment_id}/stop", responses={200: {"model": ExperimentAnswer}})
@requires(Role.ENGINEER, body=ExperimentStop, errors=(404,), optional=True)
async def stop(request: Request, experiment_id: UUID) -> Response:
    """Leave everything to the champion."""
    given = body_of(request)
    body = parse(ExperimentStop, given) if given else ExperimentStop()
    return _answer(
        await services_of(request).experiments.stop(experiment_id, caller_of(request), body.reason)
    )


def _answer(trial: ExperimentReport, status: int = 200) -> Response:
    content = _experiment(trial.experiment) | {
        "arms": [_arm(trial, arm) for arm in ("champion", "challenger")],
        "sample_ratio": {
            "p": trial.finding.numbers["sample_ratio_p"],
            "mismatch": trial.finding.verdict == "mismatch",
        },
        "verdict": {
            "verdict": trial.finding.verdict,
            "reason": trial.finding.reason,
            "difference": trial.finding.numbers["difference"],
            "fault_increase": trial.finding.numbers["fault_increase"],
            "latency_ratio": trial.finding.numbers["latency_ratio"],
        },
        "stages": [asdict(stage) for stage in trial.counts.stages],
        "decisions": [_decision(each) for each in trial.decided],
    }
    return serializers.json_response(content, status)


def _arm(trial: ExperimentReport, arm: str) -> Json:
    """An arm over all stages, and its accuracy in the present one."""
    experiment = trial.experiment
    stored = "shadow" if experiment.shadow and arm == "challenger" else arm
    rows = [row for row in trial.counts.arms if row.arm == stored]
    numbers = trial.finding.numbers[arm]
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


def _experiment(found: Experiment) -> Json:
    return {
        "id": found.id,
        "model": found.model,
        "champion": found.champion,
        "challenger": found.challenger,
        "share": found.share,
        "shadow": found.shadow,
        "stage": found.stage,
        "state": found.state,
        "reason": found.reason,
        "policy": found.policy,
        "created_at": found.created_at,
        "updated_at": found.updated_at,
        "stopped_at": found.stopped_at,
    }


def _decision(made: Decision) -> Json:
    return {
        "at": made.at,
        "action": made.action,
        "verdict": made.verdict,
        "reason": made.reason,
        "share": made.share,
        "evidence": made.evidence,
        "policy": made.policy,
        "numbers": made.numbers,
    }
