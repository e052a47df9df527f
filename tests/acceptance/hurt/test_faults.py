"""The short form of `make faults`: quick faults on one platform, by the same code, against the same goal."""

import pytest

from tests.support.faults.catalogue import FAULTS, SHORT
from tests.support.faults.fault import Fault
from tests.support.faults.trial import Plan, undergo
from tests.support.live import LivePlatform

PLAN = Plan(before=1.0, steady=2.0)


# Its 600 clients need both cores: beside another worker they wait for the processor, not for the platform.
ALONE = {"queue-full"}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=[pytest.mark.slow] if fault.name in ALONE else [])
        for fault in FAULTS
        if fault.name in SHORT
    ],
)
def test_fault_costs_nothing_that_was_acknowledged(hurt: LivePlatform, fault: Fault) -> None:
    result = undergo(fault, hurt, PLAN)
    assert (result.misses, result.examples) == ([], [])
    assert result.answered > 0
