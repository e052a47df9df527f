"""The gates that a version passes before it becomes champion: bounds on two stored reports. Pure.

Every gate may be off. Never measures, promotes or reads anything.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from registry.evaluation.report import EvaluationReport

# Of a normal distribution: 95 % lie within.
_Z = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """The bounds; None: that gate is off.

    `accuracy_difference`: least low end of the 95 % interval of the paired difference to the champion's accuracy
    on the held-out set. `recall_drop`: most that the recall of any class may fall by. `ece`: most calibration
    error. `cosine_mean`, `cosine_worst`: least agreement with the space, for versions that claim it.
    `latency_ratio`: most times the champion's time for an answer, alone or in batches. `flips_share`: most of
    the replayed texts that may get another label.
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
    """One gate: what was measured, where the bound lies; `why` in words. `value` None: there was nothing to measure."""

    name: str
    value: float | None
    bound: float
    passed: bool
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """What all gates say of a candidate; `missing` has the versions without a stored report, and why.

    `candidate` and `champion` are version numbers; no champion: nothing to compare with.
    """

    passed: bool
    candidate: str
    champion: str | None
    checks: tuple[GateCheck, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """In one line why it didn't pass."""
        if self.missing:
            named = ", ".join(f"version {version} ({why})" for version, why in self.missing.items())
            return f"evaluation missing: {named}"
        failed = "; ".join(check.why for check in self.checks if not check.passed)
        return f"a gate failed: {failed}" if failed else "every gate passed"

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        content = asdict(self)
        return {**content, "checks": list(content["checks"])}


def report_unevaluated(candidate: str, champion: str | None, missing: Mapping[str, str]) -> GateReport:
    """The report where there is nothing to judge by."""
    return GateReport(passed=False, candidate=candidate, champion=champion, missing=dict(missing))


def evaluate_gates(
    gates: Gates, candidate: EvaluationReport, champion: EvaluationReport | None
) -> GateReport:
    """All gates that are on; without a champion those that compare are left out.

    Raises ValueError if the two were measured on different held-out sets.
    """
    checks = list(_alone(gates, candidate))
    if champion is not None:
        if champion.data != candidate.data:
            raise ValueError("the reports were measured on different held-out sets")
        checks += _compared(gates, candidate, champion)
    return GateReport(
        passed=all(check.passed for check in checks),
        candidate=candidate.version,
        champion=champion.version if champion is not None else None,
        checks=tuple(checks),
    )


def paired_difference(candidate: EvaluationReport, champion: EvaluationReport) -> tuple[float, float, float]:
    """The difference of accuracies on the same texts, with its 95 % interval: value, low, high.

    By the variance of the differences text by text (McNemar's setting), which is far smaller than that of
    two independent samples.
    """
    ours, theirs = candidate.held_out.right, champion.held_out.right
    size = len(ours)
    won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    value = (won - lost) / size
    spread = _Z * math.sqrt(max(0.0, (won + lost) / size - value * value) / size)
    return value, value - spread, value + spread


def _alone(gates: Gates, candidate: EvaluationReport) -> Iterator[GateCheck]:
    if gates.ece is not None:
        yield _most("ece", candidate.held_out.ece.value, gates.ece, "the calibration error")
    agreement = candidate.agreement
    if agreement is not None and agreement.claims_space:
        if gates.cosine_mean is not None:
            yield _least("cosine_mean", agreement.mean, gates.cosine_mean, "the mean cosine to the space")
        if gates.cosine_worst is not None:
            yield _least("cosine_worst", agreement.worst, gates.cosine_worst, "the worst cosine to the space")


def _compared(gates: Gates, candidate: EvaluationReport, champion: EvaluationReport) -> Iterator[GateCheck]:
    if gates.accuracy_difference is not None:
        value, low, _ = paired_difference(candidate, champion)
        what = f"the accuracy differs by {value:+.4f} from the champion's, and its low end"
        yield _least("accuracy_difference", low, gates.accuracy_difference, what)
    if gates.recall_drop is not None:
        ours, theirs = candidate.held_out.recall, champion.held_out.recall
        drops = {name: theirs[name].value - ours[name].value for name in theirs.keys() & ours.keys()}
        if drops:
            worst = max(sorted(drops), key=drops.__getitem__)
            yield _most("recall_drop", drops[worst], gates.recall_drop, f"the fall of the recall of {worst}")
    yield from _replayed(gates, candidate, champion)


def _replayed(gates: Gates, candidate: EvaluationReport, champion: EvaluationReport) -> Iterator[GateCheck]:
    """What one run measured of both is compared, where there is such a run."""
    replay = candidate.replay
    fresh = replay if replay is not None and replay.champion_bundle == champion.bundle else None
    if gates.latency_ratio is not None:
        ours = candidate.latency
        theirs = fresh.champion_latency if fresh is not None else champion.latency
        ratio = max(
            ours.alone_ms / max(theirs.alone_ms, 1e-6),
            theirs.texts_per_second / max(ours.texts_per_second, 1e-6),
        )
        yield _most("latency_ratio", ratio, gates.latency_ratio, "its time for an answer by the champion's")
    if gates.flips_share is not None:
        if fresh is not None:
            yield _most(
                "flips_share", fresh.flips_share, gates.flips_share, "the share of replayed texts that flip"
            )
        elif replay is not None:
            why = (
                f"it was replayed against version {replay.champion_version}, and version {champion.version} "
                "is champion now: evaluate it again"
            )
            yield GateCheck(name="flips_share", value=None, bound=gates.flips_share, passed=False, why=why)


def _most(name: str, value: float, bound: float, what: str) -> GateCheck:
    # A value that is no number passes nothing.
    passed = round(value, 6) <= bound
    why = f"{what} is {value:.4f}, {'within' if passed else 'over'} the bound of {bound:g}"
    return GateCheck(name=name, value=_finite(value), bound=bound, passed=passed, why=why)


def _least(name: str, value: float, bound: float, what: str) -> GateCheck:
    passed = round(value, 6) >= bound
    why = f"{what} is {value:.4f}, {'within' if passed else 'under'} the bound of {bound:g}"
    return GateCheck(name=name, value=_finite(value), bound=bound, passed=passed, why=why)


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
