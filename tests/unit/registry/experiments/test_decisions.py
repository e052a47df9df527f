"""Decisions by evidence, the order of the rules, and the recomputation of a stored decision."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import EvidenceInvalid
from registry.experiments import statistics
from registry.experiments.decisions import ArmCounts, Evidence, Stage, decide
from registry.experiments.policies import Guardrails, Policy
from registry.experiments.statistics import ArmFeedback
from tests.support import breadth

DECIDES = Policy(action="decide")
RAMPS = Policy(action="decide", ramp=(0.01, 0.05, 0.5))


def arm(
    units: int = 5000, *, accuracy: float = 0.8, new: int | None = None, faults: int = 0, p95: float = 20.0
) -> ArmCounts:
    right = round(units * accuracy)
    return ArmCounts(
        units=units,
        new_units=units if new is None else new,
        answered=2 * units,
        faults=faults,
        p95_ms=p95,
        feedback=ArmFeedback(units=units, total=right, squares=right),
    )


def evidence(champion: ArmCounts, challenger: ArmCounts, share: float = 0.5) -> Evidence:
    return Evidence(stages=(Stage(share=share, champion=champion, challenger=challenger),))


EQUAL = evidence(arm(), arm())
BETTER = evidence(arm(), arm(accuracy=0.85))
WORSE = evidence(arm(), arm(accuracy=0.75))
SPLIT_BROKEN = evidence(arm(), arm(4000, accuracy=0.85))
FAILING = evidence(arm(), arm(accuracy=0.85, faults=400))
SLOW = evidence(arm(), arm(accuracy=0.85, p95=50.0))


def test_challenger_that_is_better_is_promoted_with_the_numbers() -> None:
    result = decide(BETTER, DECIDES)
    assert (result.action, result.verdict, result.share) == ("promote", "better", None)
    assert result.reason == (
        "the challenger is right in 85.0% of 5,000 units, the champion in 80.0% of 5,000; the difference is"
        " +5.0 points, always-valid interval +2.6 to +7.4: wholly above 0"
    )
    assert result.numbers["difference"]["low"] > 0
    assert result.numbers["champion"]["accuracy"]["value"] == 0.8
    assert result.numbers["sample_ratio_p"] == 1.0


def test_challenger_that_is_worse_is_stopped() -> None:
    result = decide(WORSE, DECIDES)
    assert (result.action, result.verdict) == ("stop", "worse")
    assert result.reason.endswith("wholly below 0")


def test_equal_arms_wait() -> None:
    assert decide(EQUAL, DECIDES).action == "none"
    assert decide(EQUAL, DECIDES).verdict == "undecided"


def test_better_by_less_than_the_least_effect_waits() -> None:
    assert decide(BETTER, replace(DECIDES, min_effect=0.04)).verdict == "undecided"


def test_policy_may_stop_at_better() -> None:
    result = decide(BETTER, replace(DECIDES, on_better="stop"))
    assert (result.action, result.verdict) == ("stop", "better")


def test_default_policy_says_the_same_and_does_nothing() -> None:
    for result in (EQUAL, BETTER, WORSE, SPLIT_BROKEN, FAILING, SLOW):
        observed, decided = decide(result, Policy()), decide(result, DECIDES)
        assert observed.action == "none"
        assert observed.share is None
        assert (observed.verdict, observed.numbers) == (decided.verdict, decided.numbers)


def test_broken_split_stops_whatever_else_is_true() -> None:
    result = decide(SPLIT_BROKEN, DECIDES)
    assert (result.action, result.verdict) == ("stop", "mismatch")
    assert "sequential p" in result.reason


def test_split_that_broke_in_an_earlier_stage_stays_broken() -> None:
    stages = (SPLIT_BROKEN.present, BETTER.present)
    assert decide(Evidence(stages=stages), DECIDES).verdict == "mismatch"


def test_units_that_came_back_say_nothing_of_the_split() -> None:
    returned = evidence(arm(), arm(4000, new=0), share=0.5)
    only_new = replace(returned.present, champion=arm(new=0))
    assert decide(Evidence(stages=(only_new,)), DECIDES).verdict == "undecided"


def test_challenger_that_fails_is_stopped_although_it_is_better() -> None:
    result = decide(FAILING, DECIDES)
    assert (result.action, result.verdict) == ("stop", "guardrail")
    assert "3.85 points" in result.reason


def test_challenger_that_only_fails_is_stopped_within_a_few_answers() -> None:
    down = ArmCounts(units=10, new_units=10, faults=10)
    champion = ArmCounts(units=990, new_units=990, answered=990, p95_ms=20.0)
    assert decide(evidence(champion, down, share=0.01), DECIDES).verdict == "guardrail"


def test_one_fault_is_no_broken_guardrail() -> None:
    unlucky = ArmCounts(units=10, new_units=10, answered=9, faults=1)
    champion = ArmCounts(units=990, new_units=990, answered=990)
    assert decide(evidence(champion, unlucky, share=0.01), DECIDES).verdict == "undecided"


def test_challenger_that_is_slow_is_stopped_although_it_is_better() -> None:
    result = decide(SLOW, DECIDES)
    assert (result.action, result.verdict) == ("stop", "guardrail")
    assert result.reason == "the challenger's p95 is 2.50 times the champion's; 2 times is allowed"


def test_latency_of_few_answers_is_not_looked_at() -> None:
    few = evidence(arm(499), arm(499, p95=50.0))
    assert decide(few, DECIDES).numbers["latency_ratio"] is None
    assert decide(few, DECIDES).verdict == "undecided"


def test_lifted_guardrails_stop_nothing() -> None:
    open_rails = replace(DECIDES, guardrails=Guardrails(max_fault_increase=None, max_latency_ratio=None))
    assert decide(FAILING, open_rails).action == "promote"
    assert decide(SLOW, open_rails).action == "promote"


def test_no_verdict_on_accuracy_before_both_arms_have_enough_units() -> None:
    result = evidence(arm(99, accuracy=0), arm(99, accuracy=1))
    outcome = decide(result, DECIDES)
    assert outcome.verdict == "undecided"
    assert outcome.reason == (
        "99 units of the champion and 99 of the challenger have feedback; a verdict needs 100 of each"
    )
    assert decide(result, replace(DECIDES, min_units=99)).action == "promote"


def test_experiment_without_a_verdict_stops_at_its_most_units() -> None:
    result = decide(EQUAL, replace(DECIDES, max_units=5000))
    assert (result.action, result.verdict) == ("stop", "inconclusive")
    assert decide(EQUAL, replace(DECIDES, max_units=5001)).action == "none"
    assert decide(BETTER, replace(DECIDES, max_units=5000)).action == "promote"


def test_ramp_takes_its_next_step_once_enough_units_met_the_challenger() -> None:
    few, enough = (evidence(arm(49_500), arm(units, new=500), share=0.01) for units in (499, 500))
    assert decide(few, RAMPS).action == "none"
    result = decide(enough, RAMPS)
    assert (result.action, result.share) == ("ramp", 0.05)
    assert result.reason.endswith("; 500 units met the challenger at a share of 1.0%, so the next is 5.0%")
    assert decide(enough, replace(RAMPS, action="observe")).action == "none"


def test_ramp_ends_at_its_last_share() -> None:
    assert decide(EQUAL, RAMPS).action == "none"


def test_inconclusive_comes_before_the_ramp() -> None:
    result = evidence(arm(49_500), arm(500), share=0.01)
    assert decide(result, replace(RAMPS, max_units=500)).verdict == "inconclusive"


def test_accuracy_is_compared_within_the_present_stage() -> None:
    hard = Stage(share=0.01, champion=arm(49_500, accuracy=0.6), challenger=arm(500, accuracy=0.6))
    easy = Stage(share=0.5, champion=arm(accuracy=0.9), challenger=arm(accuracy=0.9))
    result = decide(Evidence(stages=(hard, easy)), RAMPS)
    assert result.verdict == "undecided"
    assert result.numbers["difference"]["value"] == 0
    assert result.numbers["alpha"] == statistics.alpha_of_stage(0.05, stage=2, planned=3)


def test_nothing_counted_yet_is_a_decision_too() -> None:
    result = decide(evidence(ArmCounts(), ArmCounts()), DECIDES)
    assert (result.action, result.verdict) == ("none", "undecided")
    assert result.numbers["difference"] is None


COUNTS = st.builds(
    lambda units, means, answered, faults, p95: ArmCounts(
        units=units,
        new_units=units,
        answered=answered,
        faults=faults,
        p95_ms=p95,
        feedback=ArmFeedback.from_shares(means),
    ),
    st.integers(0, 10_000),
    st.lists(st.floats(0, 1), max_size=150),
    st.integers(0, 100_000),
    st.integers(0, 1000),
    st.none() | st.just(0.0) | st.floats(0.01, 1e4),
)
STAGES = st.builds(
    lambda share, champion, challenger: Stage(share=share, champion=champion, challenger=challenger),
    st.floats(0, 1),
    COUNTS,
    COUNTS,
)


@settings(max_examples=breadth.examples(50))
@given(stages=st.lists(STAGES, min_size=1, max_size=3), acts=st.booleans())
def test_stored_decision_is_made_again_from_its_stored_evidence(stages: list[Stage], acts: bool) -> None:
    result = Evidence(stages=tuple(stages))
    policy = replace(RAMPS, max_units=120) if acts else Policy()
    outcome = decide(result, policy)
    stored = json.loads(json.dumps([result.dump(), policy.dump(), outcome.dump()], allow_nan=False))
    again = decide(Evidence.parse(stored[0]), Policy.parse(stored[1]))
    assert again == outcome
    assert again.dump() == stored[2]


@pytest.mark.parametrize("stored", [{}, {"stages": []}, {"stages": [{}]}, {"stages": 1}, [], None])
def test_what_is_no_evidence_is_refused(stored: object) -> None:
    with pytest.raises(EvidenceInvalid):
        Evidence.parse(stored)


def test_evidence_with_an_unknown_count_is_refused() -> None:
    stored = EQUAL.dump()
    stored["stages"][0]["champion"]["clicks"] = 1
    with pytest.raises(EvidenceInvalid, match="clicks"):
        Evidence.parse(stored)
