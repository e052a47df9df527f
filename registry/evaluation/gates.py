"""The gates that a version passes before it becomes champion: bounds on two stored reports. Pure.

Every gate may be off. Never measures, promotes or reads anything.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from registry.evaluation.report import EvaluationReport

# 95 % of a normal distribution lie within this many standard deviations.
_Z = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """The bounds of the gates; None turns a gate off.

    Lower bounds: `accuracy_difference`, for the low end of the 95 % interval of the paired difference to the champion's
    accuracy on the held-out set; `cosine_mean` and `cosine_worst`, for versions that claim the space.
    Upper bounds: `recall_drop`, for the fall of any class's recall; `ece`, for the calibration error; `latency_ratio`,
    for the time of an answer over the champion's, alone or in batches; `flips_share`, for the share of replayed texts
    with another label.
    """

    accuracy_difference: float | None = -0.02
    recall_drop: float | None = 0.1
    ece: float | None = 0.1
    cosine_mean: float | None = 0.98
    cosine_worst: float | None = 0.85
    latency_ratio: float | None = 2.0
    flips_share: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GateCheck:
    """The result of one gate, with `why` in words; `value` is None if there was nothing to measure."""

    name: str
    value: float | None
    bound: float
    passed: bool
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """The results of all gates for a candidate; `missing` gives for each version without a report the reason.

    `candidate` and `champion` are version numbers; without a champion nothing is compared.
    """

    passed: bool
    candidate: str
    champion: str | None
    checks: tuple[GateCheck, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """The reason in one line."""
        if self.missing:
            named = ", ".join(f"version {version} ({why})" for version, why in self.missing.items())
            return f"evaluation missing: {named}"
        failed = "; ".join(check.why for check in self.checks if not check.passed)
        return f"a gate failed: {failed}" if failed else "every gate passed"

    def dump(self) -> dict[str, Any]:
        """Return a JSON object."""
        content = asdict(self)
        return {**content, "checks": list(content["checks"])}


def report_unevaluated(candidate: str, champion: str | None, missing: Mapping[str, str]) -> GateReport:
    """Return the report of a candidate that can't be checked, because stored reports are missing."""
    return GateReport(passed=False, candidate=candidate, champion=champion, missing=dict(missing))


def evaluate_gates(
    gates: Gates, candidate: EvaluationReport, champion: EvaluationReport | None
) -> GateReport:
    """Check all gates that are on; without a champion, those that compare are skipped.

    Raises ValueError if the two were measured on different held-out sets.
    """
    checks = list(_check_alone(gates, candidate))
    if champion is not None:
        if champion.data != candidate.data:
            raise ValueError("the reports were measured on different held-out sets")
        checks += _check_against(gates, candidate, champion)
    return GateReport(
        passed=all(check.passed for check in checks),
        candidate=candidate.version,
        champion=champion.version if champion is not None else None,
        checks=tuple(checks),
    )


def paired_difference(candidate: EvaluationReport, champion: EvaluationReport) -> tuple[float, float, float]:
    """Return the difference of accuracies on the same texts, with its 95 % interval: value, low, high.

    Uses the variance of the differences text by text (McNemar's setting), which is far smaller than that of
    two independent samples.
    """
    candidate_right, champion_right = candidate.held_out.right, champion.held_out.right
    size = len(candidate_right)
    won, lost = int((candidate_right & ~champion_right).sum()), int((champion_right & ~candidate_right).sum())
    value = (won - lost) / size
    spread = _Z * math.sqrt(max(0.0, (won + lost) / size - value * value) / size)
    return value, value - spread, value + spread


def _check_alone(gates: Gates, candidate: EvaluationReport) -> Iterator[GateCheck]:
    if gates.ece is not None:
        yield _check_maximum("ece", candidate.held_out.ece.value, gates.ece, "the calibration error")
    agreement = candidate.agreement
    if agreement is not None and agreement.claims_space:
        if gates.cosine_mean is not None:
            yield _check_minimum(
                "cosine_mean", agreement.mean, gates.cosine_mean, "the mean cosine to the space"
            )
        if gates.cosine_worst is not None:
            yield _check_minimum(
                "cosine_worst", agreement.worst, gates.cosine_worst, "the worst cosine to the space"
            )


def _check_against(
    gates: Gates, candidate: EvaluationReport, champion: EvaluationReport
) -> Iterator[GateCheck]:
    if gates.accuracy_difference is not None:
        value, low, _ = paired_difference(candidate, champion)
        subject = f"the accuracy differs by {value:+.4f} from the champion's, and its low end"
        yield _check_minimum("accuracy_difference", low, gates.accuracy_difference, subject)
    if gates.recall_drop is not None:
        after, before = candidate.held_out.recall, champion.held_out.recall
        drops = {name: before[name].value - after[name].value for name in before.keys() & after.keys()}
        if drops:
            worst = max(sorted(drops), key=drops.__getitem__)
            yield _check_maximum(
                "recall_drop", drops[worst], gates.recall_drop, f"the fall of the recall of {worst}"
            )
    yield from _check_replay(gates, candidate, champion)


def _check_replay(
    gates: Gates, candidate: EvaluationReport, champion: EvaluationReport
) -> Iterator[GateCheck]:
    """Check latency and flips, by a run that measured both versions if there is one."""
    replay = candidate.replay
    fresh = replay if replay is not None and replay.champion_bundle == champion.bundle else None
    if gates.latency_ratio is not None:
        after = candidate.latency
        before = fresh.champion_latency if fresh is not None else champion.latency
        ratio = max(
            after.alone_ms / max(before.alone_ms, 1e-6),
            before.texts_per_second / max(after.texts_per_second, 1e-6),
        )
        yield _check_maximum(
            "latency_ratio", ratio, gates.latency_ratio, "its time for an answer by the champion's"
        )
    if gates.flips_share is not None:
        if fresh is not None:
            yield _check_maximum(
                "flips_share", fresh.flips_share, gates.flips_share, "the share of replayed texts that flip"
            )
        elif replay is not None:
            why = (
                f"it was replayed against version {replay.champion_version}, and version {champion.version} "
                "is the champion now: evaluate it again"
            )
            yield GateCheck(name="flips_share", value=None, bound=gates.flips_share, passed=False, why=why)


def _check_maximum(name: str, value: float, bound: float, subject: str) -> GateCheck:
    return _check(name, value, bound, subject, "over", passed=round(value, 6) <= bound)


def _check_minimum(name: str, value: float, bound: float, subject: str) -> GateCheck:
    return _check(name, value, bound, subject, "under", passed=round(value, 6) >= bound)


def _check(name: str, value: float, bound: float, subject: str, beyond: str, *, passed: bool) -> GateCheck:
    """Return the result of a gate; NaN passes none."""
    why = f"{subject} is {value:.4f}, {'within' if passed else beyond} the bound of {bound:g}"
    finite = round(value, 6) if math.isfinite(value) else None
    return GateCheck(name=name, value=finite, bound=bound, passed=passed, why=why)
