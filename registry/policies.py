"""What an experiment may do by itself, and on how much evidence. Never looks at evidence.

A policy is a JSON object; every field has a default, and the default policy observes and decides nothing.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, NoReturn, Self, TypeVar, cast

from registry.errors import PolicyInvalid

_Choice = TypeVar("_Choice", bound=str)
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Guardrails:
    """How much worse a challenger may serve, whatever its accuracy is; None lifts a rail.

    `max_fault_increase` is in faults a prediction, and broken once the always-valid bound at `alpha` says
    so. `max_latency_ratio` is the challenger's p95 over the champion's, looked at from `min_answers` answers
    of each arm; it isn't a test, so it needs a margin.
    """

    alpha: float = 0.01
    max_fault_increase: float | None = 0.01
    max_latency_ratio: float | None = 2.0
    min_answers: int = 1000

    @classmethod
    def parse(cls, given: object, *, where: str = "guardrails") -> Self:
        """Raises PolicyInvalid, naming the field."""
        fields, default = _Fields(given, where), cls()
        parsed = cls(
            alpha=fields.number("alpha", default.alpha, above=0, below=1),
            max_fault_increase=fields.optional(
                "max_fault_increase", default.max_fault_increase, fields.number, least=0, below=1
            ),
            max_latency_ratio=fields.optional(
                "max_latency_ratio", default.max_latency_ratio, fields.number, above=0
            ),
            min_answers=fields.count("min_answers", default.min_answers),
        )
        fields.done()
        return parsed


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """When an experiment ramps, promotes and stops.

    `alpha` bounds the chance of ever calling equal versions different, `sample_ratio_alpha` that of calling a
    true split broken. No verdict on accuracy falls before both arms have `min_units` units with feedback; one
    that is better by more than `min_effect` (in accuracy) is better; with `max_units` in both arms and no
    verdict the experiment stops. The challenger's share goes to the next higher of `ramp` once `step_units`
    distinct units met the challenger at the present share.
    """

    action: Literal["observe", "decide"] = "observe"
    alpha: float = 0.05
    sample_ratio_alpha: float = 0.001
    min_units: int = 100
    max_units: int | None = None
    min_effect: float = 0.0
    ramp: tuple[float, ...] = ()
    step_units: int = 500
    guardrails: Guardrails = field(default_factory=Guardrails)
    on_better: Literal["promote", "stop"] = "promote"
    on_worse: Literal["stop"] = "stop"

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Raises PolicyInvalid, naming the field."""
        fields, default = _Fields(given, "policy"), cls()
        parsed = cls(
            action=fields.choice("action", default.action, "observe", "decide"),
            alpha=fields.number("alpha", default.alpha, above=0, below=1),
            sample_ratio_alpha=fields.number(
                "sample_ratio_alpha", default.sample_ratio_alpha, above=0, below=1
            ),
            min_units=fields.count("min_units", default.min_units),
            max_units=fields.optional("max_units", default.max_units, fields.count),
            min_effect=fields.number("min_effect", default.min_effect, least=0, below=1),
            ramp=fields.shares("ramp", default.ramp),
            step_units=fields.count("step_units", default.step_units),
            guardrails=Guardrails.parse(fields.take("guardrails", {}), where="policy.guardrails"),
            on_better=fields.choice("on_better", default.on_better, "promote", "stop"),
            on_worse=fields.choice("on_worse", default.on_worse, "stop"),
        )
        fields.done()
        if parsed.max_units is not None and parsed.max_units < parsed.min_units:
            raise PolicyInvalid(f"policy.max_units is {parsed.max_units}, less than policy.min_units")
        return parsed

    def dump(self) -> dict[str, Any]:
        """The JSON object that `parse` reads, with every field."""
        return {**asdict(self), "ramp": list(self.ramp)}

    def next_share(self, share: float) -> float | None:
        """The share that follows on the ramp; None at its end."""
        return min((step for step in self.ramp if step > share), default=None)

    def planned_stages(self, first: float) -> int:
        """How many stages there are if nobody but the ramp changes the share from the `first` one on."""
        return 1 + sum(step > first for step in self.ramp)


class _Fields:
    """The fields of a JSON object, each taken once and checked; what is left at the end is unknown."""

    def __init__(self, given: object, where: str) -> None:
        if not isinstance(given, Mapping):
            raise PolicyInvalid(f"{where} is {given!r}; it must be an object")
        self._left = dict(given)
        self._where = where

    def take(self, name: str, default: Any) -> Any:
        return self._left.pop(name, default)

    def choice(self, name: str, default: _Choice, *choices: _Choice) -> _Choice:
        value = self.take(name, default)
        if value not in choices:
            self._refuse(name, value, " or ".join(f'"{choice}"' for choice in choices))
        return cast("_Choice", value)

    def number(
        self,
        name: str,
        default: Any,
        *,
        least: float = -math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> float:
        value = self.take(name, default)
        if not _is_number(value) or not (value >= least and above < value < below):
            bounds = [f"at least {least}"] * (least > -math.inf) + [f"above {above}"] * (above > -math.inf)
            bounds += [f"below {below}"] * (below < math.inf)
            self._refuse(name, value, f"a number {' and '.join(bounds)}")
        return float(value)

    def count(self, name: str, default: Any) -> int:
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self._refuse(name, value, "a whole number of at least 1")
        return int(value)

    def optional(
        self, name: str, default: _Value | None, read: Callable[..., _Value], **bounds: float
    ) -> _Value | None:
        if self._left.get(name, default) is None:
            return cast("None", self.take(name, None))
        return read(name, default, **bounds)

    def shares(self, name: str, default: Sequence[float]) -> tuple[float, ...]:
        value = self.take(name, default)
        steps: Sequence[Any] = value if isinstance(value, list | tuple) else [None]
        if not all(_is_number(step) and 0 < step < 1 for step in steps) or any(
            low >= high for low, high in pairwise(steps)
        ):
            self._refuse(name, value, "a list of rising shares between 0 and 1")
        return tuple(float(step) for step in steps)

    def done(self) -> None:
        for name in self._left:
            raise PolicyInvalid(f"{self._where}.{name} is unknown")

    def _refuse(self, name: str, value: object, wanted: str) -> NoReturn:
        raise PolicyInvalid(f"{self._where}.{name} is {value!r}; it must be {wanted}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
