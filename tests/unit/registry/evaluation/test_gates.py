"""Each gate on both sides of its bound, and the conditions under which it is checked."""

import json

import pytest

from registry.errors import ReportInvalid
from registry.evaluation.gates import GateReport, Gates, evaluate_gates, paired_difference, report_unevaluated
from registry.evaluation.report import Agreement, EvaluationReport
from tests.support.reports import held_out, latency, replay, report

OFF = Gates(
    accuracy_difference=None,
    recall_drop=None,
    ece=None,
    cosine_mean=None,
    cosine_worst=None,
    latency_ratio=None,
    flips_share=None,
)


def only(**gate: float) -> Gates:
    return Gates(**{name: gate.get(name) for name in Gates.__slots__})


def agreeing(mean: float, worst: float, *, claims: bool = True) -> Agreement:
    return Agreement(space="s", claims_space=claims, mean=mean, worst=worst, texts=10)


def test_the_better_version_passes_and_the_worse_one_fails() -> None:
    better, worse = report("2", 0.77), report("1", 0.62)
    assert evaluate_gates(Gates(), better, worse).passed
    result = evaluate_gates(Gates(), worse, better)
    assert not result.passed
    assert [check.name for check in result.checks if not check.passed] == ["accuracy_difference"]
    assert "accuracy differs by -0.1500" in result.reason


def test_a_version_as_good_as_the_champion_passes() -> None:
    assert evaluate_gates(Gates(), report("2"), report("1")).passed


def test_the_interval_of_the_difference_is_that_of_pairs() -> None:
    value, low, high = paired_difference(report("2", 0.77), report("1", 0.75))
    assert value == pytest.approx(0.02)
    # 20 of 1,000 texts won and none lost; two independent samples would give 0.037 to either side.
    assert (low, high) == pytest.approx((0.02 - 0.00868, 0.02 + 0.00868), abs=1e-4)


@pytest.mark.parametrize(
    ("gate", "good", "bad"),
    [
        ({"recall_drop": 0.1}, {"held_out": held_out(0.75, recall=0.3)}, {"held_out": held_out(0.75, recall=0.29)}),
        ({"ece": 0.05}, {"held_out": held_out(0.75, ece=0.05)}, {"held_out": held_out(0.75, ece=0.051)}),
        ({"ece": 0.05}, {}, {"held_out": held_out(0.75, ece=float("nan"))}),
        ({"cosine_mean": 0.98}, {"agreement": agreeing(0.98, 0)}, {"agreement": agreeing(0.97, 0)}),
        ({"cosine_worst": 0.9}, {"agreement": agreeing(1, 0.9)}, {"agreement": agreeing(1, 0.89)}),
        ({"latency_ratio": 2.0}, {"latency": latency(8.0)}, {"latency": latency(8.1)}),
        ({"flips_share": 0.1}, {"replay": replay(flips=10)}, {"replay": replay(flips=11)}),
    ],
)  # fmt: skip
def test_a_gate_from_both_sides(
    gate: dict[str, float], good: dict[str, object], bad: dict[str, object]
) -> None:
    champion = report("1")
    passed, failed = (
        evaluate_gates(only(**gate), report("2", **changes), champion) for changes in (good, bad)
    )
    assert passed.passed
    assert not failed.passed
    assert [check.name for check in failed.checks] == list(gate)
    json.dumps(failed.dump(), allow_nan=False)


def test_gates_that_are_off_ask_nothing() -> None:
    result = evaluate_gates(OFF, report("2", 0.1), report("1", 0.9))
    assert (result.passed, result.checks, result.reason) == (True, (), "every gate passed")


def test_without_a_champion_nothing_is_compared() -> None:
    result = evaluate_gates(Gates(flips_share=0.0), report("2", 0.1), None)
    assert result.passed
    assert {check.name for check in result.checks} == {"ece", "cosine_mean", "cosine_worst"}


def test_vectors_that_stay_out_of_the_index_may_be_anything() -> None:
    gates = only(cosine_mean=0.98)
    assert evaluate_gates(gates, report("2", agreement=agreeing(0.1, 0, claims=False)), None).checks == ()
    assert evaluate_gates(gates, report("2", agreement=None), None).checks == ()


def test_flips_against_another_champion_say_nothing_of_this_one() -> None:
    result = evaluate_gates(only(flips_share=0.5), report("3", replay=replay(champion="1")), report("2"))
    assert not result.passed
    assert "evaluate it again" in result.reason
    assert result.checks[0].value is None


def test_latencies_of_one_run_are_compared_where_there_is_one() -> None:
    gates, slow_then = only(latency_ratio=2.0), report("1", latency=latency(1.0))
    assert not evaluate_gates(gates, report("2"), slow_then).passed
    assert evaluate_gates(gates, report("2", replay=replay()), slow_then).passed


def test_reports_on_different_sets_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different held-out sets"):
        evaluate_gates(Gates(), report("2"), report("1", data="0" * 64))


def test_a_missing_evaluation_is_reported_with_the_reason() -> None:
    result = report_unevaluated("3", "2", {"3": "never evaluated"})
    assert isinstance(result, GateReport)
    assert not result.passed
    assert result.reason == "evaluation missing: version 3 (never evaluated)"


def test_a_report_comes_back_from_json_as_it_was() -> None:
    for whole in (report("2", replay=replay()), report("1", agreement=None, encoder=None)):
        assert EvaluationReport.parse(json.loads(json.dumps(whole.dump()))) == whole


def test_a_report_of_another_format_is_refused() -> None:
    with pytest.raises(ReportInvalid, match="evaluate the version again"):
        EvaluationReport.parse(report("2").dump() | {"format": 0})
    with pytest.raises(ReportInvalid):
        EvaluationReport.parse({"format": 1})
