"""Requests and responses about experiments."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, Field

from registry.experiments.policies import Policy
from serving.api.schemas.fields import Comment, Name, RequestBody, ResponseBody, VersionName, name_examples

VerdictName = Literal["mismatch", "guardrail", "better", "worse", "inconclusive", "undecided"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

_POLICY = "the actions it may take by itself; by default none (docs/experiments.md)"


class ExperimentRequest(RequestBody):
    """A challenger to try; with `shadow` it scores its share of the texts, but the champion answers."""

    model_config = ConfigDict(
        json_schema_extra=name_examples(
            a_tenth_of_the_units={"model": "sentiment", "challenger": "2", "share": 0.1},
            as_a_shadow={"model": "sentiment", "challenger": "2", "share": 1, "shadow": True},
            with_a_policy={
                "model": "sentiment",
                "challenger": "2",
                "share": 0.05,
                "policy": {"action": "decide", "ramp": [0.05, 0.25, 0.5], "min_units": 200},
            },
        )
    )

    model: Name
    challenger: VersionName
    share: Share
    shadow: bool = False
    policy: Policy | None = Field(None, description=_POLICY)


class ExperimentChangeRequest(RequestBody):
    """Another share, for which as few units as possible change arms, or another policy."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"share": 0.25}]})

    share: Share | None = None
    policy: Policy | None = Field(None, description=_POLICY)


class ExperimentStopRequest(RequestBody):
    """The reason for stopping."""

    reason: Comment | None = None


class IntervalResponse(ResponseBody):
    """An estimate with its always-valid interval."""

    value: float
    low: float
    high: float


class ArmResponse(ResponseBody):
    """An arm: its answers in all stages, and its accuracy by feedback in the stage that the verdict is about."""

    arm: Literal["champion", "challenger", "shadow"]
    version: str
    exposures: int
    units: int
    faults: int
    feedback: int
    accuracy: IntervalResponse | None
    p95_ms: float | None


class SampleRatioResponse(ResponseBody):
    """Whether the arms got units according to their shares: a sequential p-value."""

    p: float
    mismatch: bool


class VerdictResponse(ResponseBody):
    """The conclusion from the evidence, whether or not the policy acts on it.

    It is about the latest stage with enough feedback, `stage`; `explanation` says how to read it.
    """

    verdict: VerdictName
    reason: str
    stage: int
    explanation: str
    difference: IntervalResponse | None
    fault_increase: IntervalResponse | None
    latency_ratio: float | None


class StageArmResponse(ResponseBody):
    """An arm in one stage: the units that it answered, those with feedback, and its accuracy by that."""

    arm: Literal["champion", "challenger", "shadow"]
    units: int
    judged_units: int
    accuracy: IntervalResponse | None


class StageResponse(ResponseBody):
    """A period with one share, and the conclusion from its feedback as it is now."""

    number: int
    share: float
    verdict: VerdictName
    reason: str
    difference: IntervalResponse | None
    arms: list[StageArmResponse]


class DecisionResponse(ResponseBody):
    """A decision of the policy, with everything that is needed to compute it again."""

    at: AwareDatetime
    action: Literal["ramp", "promote", "stop"]
    verdict: str
    reason: str
    share: float | None
    evidence: dict[str, Any]
    policy: Policy
    numbers: dict[str, Any]


class ExperimentSummary(ResponseBody):
    """An experiment's present state."""

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


class ExperimentResponse(ExperimentSummary):
    """An experiment with its arms, its verdict and its decisions."""

    arms: list[ArmResponse]
    sample_ratio: SampleRatioResponse
    verdict: VerdictResponse
    stages: list[StageResponse]
    decisions: list[DecisionResponse]


class ExperimentListResponse(ResponseBody):
    """Experiments, newest first."""

    items: list[ExperimentSummary]
