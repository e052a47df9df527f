"""The short form of `make faults`: quick faults on one platform, by the same code, against the same goal."""

import pytest

from tests.support.faults.catalogue import FAULTS, SHORT
from tests.support.faults.fault import Fault
from tests.support.faults.trial import Plan, undergo
from tests.support.live import LivePlatform

PLAN = Plan(before=1.0, steady=2.0)


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.name in SHORT], ids=lambda fault: fault.name
)
def test_fault_costs_nothing_that_was_acknowledged(hurt: LivePlatform, fault: Fault) -> None:
    result = undergo(fault, hurt, PLAN)
    assert (result.misses, result.examples) == ([], [])
    assert result.answered > 0
