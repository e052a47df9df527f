"""The next step of an experiment, decided from its counts. Pure: never counts, stores or acts.

The same evidence and policy always give the same decision, so a stored decision can be recomputed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from registry.errors import EvidenceInvalid
from registry.evaluation.metrics import Interval
from registry.experiments import statistics
from registry.experiments.policies import Guardrails, Policy
from registry.experiments.statistics import ArmFeedback, Split

Verdict = Literal["mismatch", "guardrail", "better", "worse", "inconclusive", "undecided"]
Action = Literal["none", "ramp", "promote", "stop"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmCounts:
    """The counts of one arm in one stage.

    `units` are the distinct units that the arm answered; `new_units` are those that the experiment saw for the first
    time in this stage, counted for the arm that answered first. `answered` and `faults` count predictions; `p95_ms`
    is the 95th percentile of the time of an answer. `feedback` is the present feedback on the stage's answers.
    """

    units: int = 0
    new_units: int = 0
    answered: int = 0
    faults: int = 0
    p95_ms: float | None = None
    feedback: ArmFeedback = field(default_factory=ArmFeedback)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """The counts of a period in which the challenger's share didn't change."""

    share: float
    champion: ArmCounts
    challenger: ArmCounts


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All counts by stages, in the order of time; there is at least one, and the last is the present one."""

    stages: tuple[Stage, ...]

    @property
    def present(self) -> Stage:
        return self.stages[-1]

    def dump(self) -> dict[str, Any]:
        """Return the JSON object that `parse` reads."""
        return {"stages": [asdict(stage) for stage in self.stages]}

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> Self:
        """Parse stored evidence. Raises EvidenceInvalid."""
        try:
            stages = tuple(
                Stage(
                    share=float(stage["share"]),
                    champion=_counts(stage["champion"]),
                    challenger=_counts(stage["challenger"]),
                )
                for stage in stored["stages"]
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise EvidenceInvalid(f"the evidence can't be read: {exc!r}") from exc
        if not stages:
            raise EvidenceInvalid("the evidence has no stages")
        return cls(stages=stages)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyDecision:
    """The action to take, with its reason.

    `promote` makes the challenger champion, `stop` keeps the champion, `ramp` sets the challenger's share to
    `share`. `verdict` is the result of the comparison, whether or not the policy acts on it. `reason` is a sentence,
    and `numbers` a JSON object of everything that the decision is based on.
    """

    action: Action
    verdict: Verdict
    reason: str
    share: float | None = None
    numbers: Mapping[str, Any]

    def dump(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measurements:
    """The numbers behind a verdict; None if there are too few counts for one."""

    alpha: float
    champion: Interval | None
    challenger: Interval | None
    difference: Interval | None
    sample_ratio_p: float
    champion_faults: Interval | None
    challenger_faults: Interval | None
    fault_increase: Interval | None
    latency_ratio: float | None


def decide(evidence: Evidence, policy: Policy) -> PolicyDecision:
    """Decide by the first rule that applies: broken split, broken guardrail, better, worse, `max_units`, ramp.

    The sample ratio is checked over all stages. Accuracy, faults and latency are compared within the present stage:
    the requests change with time, so arms that are weighted differently over time would differ by that alone
    (Simpson's paradox of ramps; Kohavi et al., 2020, chapter 3). Every stage has its part of alpha.
    """
    measured = _measure(evidence, policy)
    verdict, reason = _reach_verdict(measured, evidence.present, policy)
    action, share = _choose_action(verdict, evidence.present, policy)
    if action == "ramp":
        reason += (
            f"; {evidence.present.challenger.units:,} units met the challenger at a share of"
            f" {evidence.present.share:.1%}, so the next is {share:.1%}"
        )
    return PolicyDecision(
        action=action, verdict=verdict, reason=reason, share=share, numbers=_numbers(measured, evidence)
    )


def _measure(evidence: Evidence, policy: Policy) -> _Measurements:
    present = evidence.present
    stage, planned = len(evidence.stages), policy.planned_stages(evidence.stages[0].share)
    alpha = statistics.alpha_of_stage(policy.alpha, stage=stage, planned=planned)
    rail_alpha = statistics.alpha_of_stage(policy.guardrails.alpha, stage=stage, planned=planned)
    before, after = (
        (arm.faults, arm.answered + arm.faults) for arm in (present.champion, present.challenger)
    )
    splits = [
        Split(share=each.share, champion=each.champion.new_units, challenger=each.challenger.new_units)
        for each in evidence.stages
    ]
    return _Measurements(
        alpha=alpha,
        champion=statistics.accuracy(present.champion.feedback, level=1 - alpha),
        challenger=statistics.accuracy(present.challenger.feedback, level=1 - alpha),
        difference=statistics.accuracy_difference(
            present.champion.feedback, present.challenger.feedback, alpha=alpha
        ),
        sample_ratio_p=statistics.sample_ratio(splits),
        champion_faults=statistics.rate(*before, alpha=rail_alpha / 2),
        challenger_faults=statistics.rate(*after, alpha=rail_alpha / 2),
        fault_increase=statistics.rate_difference(before, after, alpha=rail_alpha),
        latency_ratio=_latency_ratio(present, policy.guardrails),
    )


def _reach_verdict(measured: _Measurements, present: Stage, policy: Policy) -> tuple[Verdict, str]:
    if measured.sample_ratio_p <= policy.sample_ratio_alpha:
        return "mismatch", (
            f"units did not fall to the arms by their shares (sequential p {measured.sample_ratio_p:.2g}, bound"
            f" {policy.sample_ratio_alpha:g}), so no comparison holds"
        )
    if broken := _broken_guardrail(measured, policy.guardrails):
        return "guardrail", broken
    before, after, gap = measured.champion, measured.challenger, measured.difference
    units = min(present.champion.feedback.units, present.challenger.feedback.units)
    if before is None or after is None or gap is None or units < policy.min_units:
        return "undecided", (
            f"{present.champion.feedback.units:,} units of the champion and"
            f" {present.challenger.feedback.units:,} of the challenger have feedback; a verdict needs"
            f" {policy.min_units:,} of each"
        )
    comparison = (
        f"the challenger is right in {after.value:.1%} of {present.challenger.feedback.units:,} units, the champion in"
        f" {before.value:.1%} of {present.champion.feedback.units:,}; the difference is {100 * gap.value:+.1f} points,"
        f" always-valid interval {100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    )
    if gap.low > policy.min_effect:
        return "better", f"{comparison}: wholly above {100 * policy.min_effect:g}"
    if gap.high < 0:
        return "worse", f"{comparison}: wholly below 0"
    if policy.max_units is not None and units >= policy.max_units:
        return "inconclusive", f"{comparison}: undecided after {policy.max_units:,} units an arm"
    return "undecided", f"{comparison}: undecided"


def _broken_guardrail(measured: _Measurements, rails: Guardrails) -> str | None:
    limit, faults = rails.max_fault_increase, measured.fault_increase
    if limit is not None and faults is not None and faults.low > limit:
        return (
            f"the challenger fails by {100 * faults.value:.2f} points of its predictions more than the champion"
            f" (at least {100 * faults.low:.2f}); {100 * limit:g} are allowed"
        )
    ratio = measured.latency_ratio
    if rails.max_latency_ratio is not None and ratio is not None and ratio > rails.max_latency_ratio:
        return f"the challenger's p95 is {ratio:.2f} times the champion's; {rails.max_latency_ratio:g} times is allowed"
    return None


def _latency_ratio(present: Stage, rails: Guardrails) -> float | None:
    before, after = present.champion, present.challenger
    if min(before.answered, after.answered) < rails.min_answers or not before.p95_ms or after.p95_ms is None:
        return None
    return after.p95_ms / before.p95_ms


def _choose_action(verdict: Verdict, present: Stage, policy: Policy) -> tuple[Action, float | None]:
    if policy.action == "observe":
        return "none", None
    if verdict == "better":
        return policy.on_better, None
    if verdict == "worse":
        return policy.on_worse, None
    if verdict != "undecided":
        return "stop", None
    share = policy.next_share(present.share)
    if share is None or present.challenger.units < policy.step_units:
        return "none", None
    return "ramp", share


def _numbers(measured: _Measurements, evidence: Evidence) -> dict[str, Any]:
    present = evidence.present
    return {
        "stage": len(evidence.stages),
        "share": present.share,
        "alpha": measured.alpha,
        "champion": _arm_numbers(present.champion, measured.champion, measured.champion_faults),
        "challenger": _arm_numbers(present.challenger, measured.challenger, measured.challenger_faults),
        "difference": _json(measured.difference),
        "sample_ratio_p": measured.sample_ratio_p,
        "fault_increase": _json(measured.fault_increase),
        "latency_ratio": measured.latency_ratio,
    }


def _arm_numbers(counts: ArmCounts, accuracy: Interval | None, faults: Interval | None) -> dict[str, Any]:
    return {
        "units": counts.units,
        "judged_units": counts.feedback.units,
        "accuracy": _json(accuracy),
        "faults": _json(faults),
        "p95_ms": counts.p95_ms,
    }


def _json(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else asdict(interval)


def _counts(stored: Mapping[str, Any]) -> ArmCounts:
    return ArmCounts(**{**stored, "feedback": ArmFeedback(**stored["feedback"])})
