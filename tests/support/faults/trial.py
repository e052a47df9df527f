"""A trial: a platform under load gets one fault, recovers, and is compared with its answers."""

import time
from dataclasses import dataclass, field

from tests.support.clock import eventually
from tests.support.faults.clients import Clients
from tests.support.faults.fault import Fault
from tests.support.faults.ledger import Kind, Ledger
from tests.support.faults.proof import Canaries
from tests.support.live import LivePlatform

MOST_RECOVERY_SECONDS = 15.0

_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The number of clients, the seconds before the fault, and the seconds of good answers afterwards, with a bound."""

    clients: int = 6
    before: float = 3.0
    steady: float = 5.0
    patience: float = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result of a fault: requests by kind, wrong and lost predictions, and seconds from the fault.

    `lasted`: until it was healed; `recovered`: until the first answer after which all went well, None if never.
    """

    name: str
    sent: int
    answered: int
    refused: int
    failed: int
    wrong: int
    lost: int
    lasted: float
    recovered: float | None
    refusals: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def misses(self) -> list[str]:
        """Return where the result misses the goal."""
        found = []
        if self.wrong:
            found.append(f"{self.wrong} wrong")
        if self.lost:
            found.append(f"{self.lost} lost")
        if self.failed:
            found.append(", ".join(f"{number} × {said}" for said, number in self.failures.items()))
        if self.recovered is None:
            found.append("did not recover")
        elif self.recovered > MOST_RECOVERY_SECONDS:
            found.append(f"recovered after more than {MOST_RECOVERY_SECONDS:.0f} s")
        return found


def undergo(fault: Fault, platform: LivePlatform, plan: Plan) -> Result:
    """Damage the platform by this fault; return the result."""
    platform.wait_until_ready(_READY_SECONDS)
    canaries = Canaries(platform)
    ledger = Ledger()
    with Clients(platform, plan.clients, ledger):
        eventually(
            lambda: ledger.count(Kind.ANSWERED) >= 10 * plan.clients, within=30, what="clients are answered"
        )
        time.sleep(plan.before)
        injured = time.monotonic()
        with fault.hurt(platform, ledger):
            time.sleep(fault.seconds)
        healed = time.monotonic()
        recovered = _settled(ledger, injured, healed, plan)
    if recovered is None:
        # Acknowledged predictions must be there even if the platform had to be started again.
        platform.down()
        platform.up()
    verdict = canaries.verdict(ledger.answers)
    return Result(
        name=fault.name,
        sent=ledger.count(),
        answered=ledger.count(Kind.ANSWERED),
        refused=ledger.count(Kind.REFUSED),
        failed=ledger.count(Kind.FAILED),
        wrong=len(verdict.wrong),
        lost=len(verdict.lost),
        lasted=healed - injured,
        recovered=None if recovered is None else recovered - injured,
        refusals=ledger.said(Kind.REFUSED),
        failures=ledger.said(Kind.FAILED),
        examples=[f"{id_}: {why}" for id_, why in list(verdict.wrong.items())[:3]],
    )


def _settled(ledger: Ledger, injured: float, healed: float, plan: Plan) -> float | None:
    """Return when it recovered, once it has answered well for as long as the plan says."""
    while True:
        now = time.monotonic()
        recovered = ledger.recovered(injured, now)
        if recovered is not None and now - max(recovered, healed) >= plan.steady:
            return recovered
        if now - healed > plan.patience:
            return recovered
        time.sleep(_LOOK_SECONDS)
