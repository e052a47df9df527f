"""A fault: one way to damage a platform, its ground, and its duration."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from tests.support.faults.ledger import Ledger
from tests.support.live import LivePlatform

Injury: TypeAlias = Callable[[LivePlatform, Ledger], AbstractContextManager[None]]
"""Entering hurts the platform, leaving heals what does not heal by itself; crowds note in the ledger."""

Ground: TypeAlias = Callable[[], AbstractContextManager[LivePlatform]]
"""A platform that may be hurt; raises Missing where this machine can't have it."""


class Missing(Exception):
    """This machine lacks something that the fault needs; the message names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One way to damage a platform for `seconds`; 0 for an instant one."""

    name: str
    how: str
    hurt: Injury
    ground: Ground
    seconds: float = 0.0


def together(*injuries: Injury) -> Injury:
    """Apply all of them, in order."""

    @contextmanager
    def hurt(platform: LivePlatform, ledger: Ledger) -> Iterator[None]:
        with ExitStack() as stack:
            for injury in injuries:
                stack.enter_context(injury(platform, ledger))
            yield

    return hurt
