"""Policies: what is read, what is refused, and by what name."""

import json
from typing import Any

import pytest

from registry.errors import PolicyInvalid
from registry.policies import Guardrails, Policy


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
    ("given", "message"),
    [
        ({"alhpa": 0.05}, "policy.alhpa is unknown"),
        ({"action": "promote"}, 'policy.action is \'promote\'; it must be "observe" or "decide"'),
        ({"action": ["decide"]}, "policy.action is"),
        ({"alpha": 0}, "policy.alpha is 0; it must be a number above 0 and below 1"),
        ({"alpha": "0.05"}, "policy.alpha is '0.05'"),
        ({"alpha": True}, "policy.alpha is True"),
        ({"alpha": float("nan")}, "policy.alpha is nan"),
        ({"guardrails": {"max_latency_ratio": 10**400}}, "policy.guardrails.max_latency_ratio is"),
        ({"alpha": None}, "policy.alpha is None"),
        ({"sample_ratio_alpha": 1}, "policy.sample_ratio_alpha is 1"),
        ({"min_units": 0}, "policy.min_units is 0; it must be a whole number of at least 1"),
        ({"min_units": 10.5}, "policy.min_units is 10.5"),
        ({"max_units": True}, "policy.max_units is True"),
        ({"max_units": 99}, "policy.max_units is 99, less than policy.min_units"),
        ({"min_effect": -0.01}, "policy.min_effect is -0.01; it must be a number at least 0 and below 1"),
        ({"ramp": 0.5}, "policy.ramp is 0.5; it must be a list of rising shares between 0 and 1"),
        ({"ramp": [0.1, 0.1]}, "policy.ramp is"),
        ({"ramp": [0.1, 1.0]}, "policy.ramp is"),
        ({"ramp": [0.1, "0.2"]}, "policy.ramp is"),
        ({"step_units": "many"}, "policy.step_units is 'many'"),
        ({"guardrails": None}, "policy.guardrails is None; it must be an object"),
        ({"guardrails": {"speed": 1}}, "policy.guardrails.speed is unknown"),
        ({"guardrails": {"max_latency_ratio": 0}}, "policy.guardrails.max_latency_ratio is 0"),
        ({"guardrails": {"max_fault_increase": 1.5}}, "policy.guardrails.max_fault_increase is 1.5"),
        ({"on_better": "ramp"}, 'policy.on_better is \'ramp\'; it must be "promote" or "stop"'),
        ({"on_worse": "promote"}, "policy.on_worse is 'promote'; it must be \"stop\""),
        ([], "policy is []; it must be an object"),
    ],
)
def test_what_is_no_policy_is_refused_by_the_name_of_its_field(given: Any, message: str) -> None:
    with pytest.raises(PolicyInvalid) as refused:
        Policy.parse(given)
    assert message in str(refused.value)


def test_ramp_goes_to_the_next_higher_share_and_ends() -> None:
    policy = Policy(ramp=(0.01, 0.05, 0.5))
    assert [policy.next_share(share) for share in (0.0, 0.01, 0.02, 0.05, 0.5, 0.9)] == [
        0.01, 0.05, 0.05, 0.5, None, None,
    ]  # fmt: skip
    assert [policy.planned_stages(share) for share in (0.005, 0.01, 0.5)] == [4, 3, 1]
    assert Policy().planned_stages(0.1) == 1
