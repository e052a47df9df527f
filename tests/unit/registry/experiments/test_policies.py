"""Policies: accepted and refused values, and the names in the errors."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from registry.experiments.policies import Guardrails, Policy


def test_policy_without_fields_observes() -> None:
    assert Policy.parse({}) == Policy()
    assert Policy().action == "observe"


def test_policy_survives_json() -> None:
    policy = Policy.parse(
        {
            "action": "decide",
            "alpha": 0.1,
            "sample_ratio_alpha": 0.0001,
            "min_units": 50,
            "max_units": 5000,
            "min_effect": 0.01,
            "ramp": [0.01, 0.05, 0.1, 0.25, 0.5],
            "step_units": 200,
            "guardrails": {"max_fault_increase": 0.02, "max_latency_ratio": None, "min_answers": 10},
            "on_better": "stop",
            "on_worse": "stop",
        }
    )
    assert policy.ramp == (0.01, 0.05, 0.1, 0.25, 0.5)
    assert policy.guardrails == Guardrails(max_fault_increase=0.02, max_latency_ratio=None, min_answers=10)
    assert Policy.parse(json.loads(json.dumps(policy.dump()))) == policy
    assert Policy.parse(Policy().dump()) == Policy()


@pytest.mark.parametrize(
    ("given", "place", "message"),
    [
        ({"alhpa": 0.05}, "alhpa", "Unexpected"),
        ({"action": "promote"}, "action", "'observe' or 'decide'"),
        ({"action": ["decide"]}, "action", "'observe' or 'decide'"),
        ({"alpha": 0}, "alpha", "greater than 0"),
        ({"alpha": "0.05"}, "alpha", "number"),
        ({"alpha": True}, "alpha", "number"),
        ({"alpha": float("nan")}, "alpha", "finite"),
        ({"guardrails": {"max_latency_ratio": 10**400}}, "guardrails.max_latency_ratio", "number"),
        ({"alpha": None}, "alpha", "number"),
        ({"sample_ratio_alpha": 1}, "sample_ratio_alpha", "less than 1"),
        ({"min_units": 0}, "min_units", "greater than or equal to 1"),
        ({"min_units": 10.5}, "min_units", "integer"),
        ({"max_units": True}, "max_units", "integer"),
        ({"max_units": 99}, "", "max_units is 99, less than min_units, 100"),
        ({"min_effect": -0.01}, "min_effect", "greater than or equal to 0"),
        ({"ramp": 0.5}, "ramp", "tuple"),
        ({"ramp": [0.1, 0.1]}, "ramp", "the shares must rise"),
        ({"ramp": [0.1, 1.0]}, "ramp.1", "less than 1"),
        ({"ramp": [0.1, "0.2"]}, "ramp.1", "number"),
        ({"step_units": "many"}, "step_units", "integer"),
        ({"guardrails": None}, "guardrails", "dictionary"),
        ({"guardrails": {"speed": 1}}, "guardrails.speed", "Unexpected"),
        ({"guardrails": {"max_latency_ratio": 0}}, "guardrails.max_latency_ratio", "greater than 0"),
        ({"guardrails": {"max_fault_increase": 1.5}}, "guardrails.max_fault_increase", "less than 1"),
        ({"on_better": "ramp"}, "on_better", "'promote' or 'stop'"),
        ({"on_worse": "promote"}, "on_worse", "'stop'"),
        ([], "", "dictionary"),
    ],
)
def test_what_is_no_policy_is_refused_by_the_name_of_its_field(given: Any, place: str, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Policy.parse(given)
    (fault,) = refused.value.errors()
    assert ".".join(map(str, fault["loc"])) == place
    assert message in fault["msg"]


def test_whole_numbers_may_be_written_as_json_has_them() -> None:
    assert Policy.parse({"min_units": 3.0}).min_units == 3


def test_ramp_goes_to_the_next_higher_share_and_ends() -> None:
    policy = Policy(ramp=(0.01, 0.05, 0.5))
    assert [policy.next_share(share) for share in (0.0, 0.01, 0.02, 0.05, 0.5, 0.9)] == [
        0.01, 0.05, 0.05, 0.5, None, None,
    ]  # fmt: skip
    assert [policy.planned_stages(share) for share in (0.005, 0.01, 0.5)] == [4, 3, 1]
    assert Policy().planned_stages(0.1) == 1
