"""What an experiment may do by itself, and on how much evidence. Never looks at evidence.

A policy is a JSON object; every field has a default, and the default policy observes and decides nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, field
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

_CONFIG = ConfigDict(extra="forbid", hide_input_in_errors=True)


def _whole(number: Any) -> Any:
    """JSON has one kind of number, so 3.0 is an integer, too."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _rising(shares: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in pairwise(shares)):
        raise ValueError("the shares must rise")
    return shares


_Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Chance: TypeAlias = Annotated[_Number, Field(gt=0, lt=1)]
_Increase: TypeAlias = Annotated[_Number, Field(ge=0, lt=1)]
_Count: TypeAlias = Annotated[int, Field(ge=1, strict=True), BeforeValidator(_whole)]


@dataclass(frozen=True, kw_only=True, slots=True, config=_CONFIG)
class Guardrails:
    """How much worse a challenger may serve, whatever its accuracy is; null lifts a rail.

    `max_fault_increase` is in faults a prediction, and broken once the always-valid bound at `alpha` says
    so. `max_latency_ratio` is the challenger's p95 over the champion's, looked at from `min_answers` answers
    of each arm; it isn't a test, so it needs a margin.
    """

    alpha: _Chance = 0.01
    max_fault_increase: _Increase | None = 0.01
    max_latency_ratio: Annotated[_Number, Field(gt=0)] | None = 2.0
    min_answers: _Count = 1000


@dataclass(frozen=True, kw_only=True, slots=True, config=_CONFIG)
class Policy:
    """When an experiment ramps, promotes and stops.

    `alpha` bounds the chance of ever calling equal versions different, `sample_ratio_alpha` that of calling a
    true split broken. No verdict on accuracy falls before both arms have `min_units` units with feedback; one
    that is better by more than `min_effect` (in accuracy) is better; with `max_units` in both arms and no
    verdict the experiment stops. The challenger's share goes to the next higher of `ramp` once `step_units`
    distinct units met the challenger at the present share.
    """

    action: Literal["observe", "decide"] = "observe"
    alpha: _Chance = 0.05
    sample_ratio_alpha: _Chance = 0.001
    min_units: _Count = 100
    max_units: _Count | None = None
    min_effect: _Increase = 0.0
    ramp: Annotated[tuple[_Chance, ...], AfterValidator(_rising)] = ()
    step_units: _Count = 500
    guardrails: Guardrails = field(default_factory=Guardrails)
    on_better: Literal["promote", "stop"] = "promote"
    on_worse: Literal["stop"] = "stop"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_units is not None and self.max_units < self.min_units:
            raise ValueError(f"max_units is {self.max_units}, less than min_units, {self.min_units}")
        return self

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "Policy":
        """Raises ValueError, naming the field."""
        return _POLICY.validate_python(given)

    def dump(self) -> dict[str, Any]:
        """The JSON object that `parse` reads, with every field."""
        return {**asdict(self), "ramp": list(self.ramp)}

    def next_share(self, share: float) -> float | None:
        """The share that follows on the ramp; None at its end."""
        return min((step for step in self.ramp if step > share), default=None)

    def planned_stages(self, first: float) -> int:
        """How many stages there are if nobody but the ramp changes the share from the `first` one on."""
        return 1 + sum(step > first for step in self.ramp)


_POLICY = TypeAdapter(Policy)
