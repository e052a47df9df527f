"""Requests and answers of experiments."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, Field

from registry.experiments.policies import Policy
from serving.api.schemas.fields import Body, Comment, Name, Shape

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

_POLICY = "what it may do by itself; the default observes and decides nothing (docs/experiments.md)"


class ExperimentRequest(Body):
    """A challenger to be tried; with `shadow` it scores its share beside the champion and answers nobody."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "sentiment", "challenger": "2", "share": 0.1}]}
    )

    model: Name
    challenger: Name
    share: Share
    shadow: bool = False
    policy: Policy | None = Field(None, description=_POLICY)


class ExperimentChange(Body):
    """Another share, of which only the units that must move do, or another policy."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"share": 0.25}]})

    share: Share | None = None
    policy: Policy | None = Field(None, description=_POLICY)


class ExperimentStop(Body):
    """Why it is stopped."""

    reason: Comment | None = None


class IntervalShape(Shape):
    """An estimate with its always-valid interval."""

    value: float
    low: float
    high: float


class ArmShape(Shape):
    """An arm: what it answered over all stages, and its accuracy by feedback in the present one."""

    arm: Literal["champion", "challenger", "shadow"]
    version: str
    exposures: int
    units: int
    faults: int
    feedback: int
    accuracy: IntervalShape | None
    p95_ms: float | None


class SampleRatio(Shape):
    """Whether units fell to the arms by their shares: a sequential p-value."""

    p: float
    mismatch: bool


class VerdictShape(Shape):
    """What the evidence says, whatever the policy lets follow from it."""

    verdict: Literal["mismatch", "guardrail", "better", "worse", "inconclusive", "undecided"]
    reason: str
    difference: IntervalShape | None
    fault_increase: IntervalShape | None
    latency_ratio: float | None


class StageShape(Shape):
    """A time in which the share stood still."""

    number: int
    share: float


class DecisionShape(Shape):
    """What the policy did, with all that lets it be recomputed."""

    at: AwareDatetime
    action: Literal["ramp", "promote", "stop"]
    verdict: str
    reason: str
    share: float | None
    evidence: dict[str, Any]
    policy: Policy
    numbers: dict[str, Any]


class ExperimentSummary(Shape):
    """An experiment as it stands."""

    id: UUID
    model: str
    champion: str
    challenger: str
    share: float
    shadow: bool
    stage: int
    state: Literal["running", "stopped"]
    reason: str | None
    policy: Policy
    created_at: AwareDatetime
    updated_at: AwareDatetime
    stopped_at: AwareDatetime | None


class ExperimentAnswer(ExperimentSummary):
    """An experiment with its arms, its verdict and what was decided."""

    arms: list[ArmShape]
    sample_ratio: SampleRatio
    verdict: VerdictShape
    stages: list[StageShape]
    decisions: list[DecisionShape]


class ExperimentList(Shape):
    """Experiments, newest first."""

    items: list[ExperimentSummary]
