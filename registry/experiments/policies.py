"""The policy of an experiment: the actions that it may take by itself, and the evidence that they need.

A policy is a JSON object. Every field has a default, and the default policy only observes.
"""

from collections.abc import Mapping
from dataclasses import asdict, field
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

_CONFIG = ConfigDict(extra="forbid", hide_input_in_errors=True)


def _whole(number: Any) -> Any:
    """Turn 3.0 into 3, because JSON has only one kind of number."""
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
    """The limits of how much worse a challenger may serve, whatever its accuracy is; null turns a limit off.

    `max_fault_increase` is in faults a prediction; it is broken once the always-valid lower bound at `alpha` exceeds
    it. `max_latency_ratio` is the challenger's p95 over the champion's, checked from `min_answers` answers
    of each arm; this is no statistical test, so it needs a margin.
    """

    alpha: _Chance = 0.01
    max_fault_increase: _Increase | None = 0.01
    max_latency_ratio: Annotated[_Number, Field(gt=0)] | None = 2.0
    min_answers: _Count = 1000


@dataclass(frozen=True, kw_only=True, slots=True, config=_CONFIG)
class Policy:
    """The rules by which an experiment ramps, promotes and stops.

    `alpha` bounds the chance of ever calling equal versions different, `sample_ratio_alpha` that of calling a
    correct split broken. There is no verdict on accuracy before both arms have `min_units` units with feedback. A
    challenger counts as better if its accuracy is higher by more than `min_effect`. The experiment stops if both arms
    have `max_units` and there is no verdict. The challenger's share rises to the next step of `ramp` once
    `step_units` distinct units met the challenger at the present share.
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
    def parse(cls, raw: Mapping[str, Any]) -> "Policy":
        """Parse a policy. Raises ValueError, naming the field."""
        return _POLICY.validate_python(raw)

    def dump(self) -> dict[str, Any]:
        """Return the JSON object that `parse` reads, with every field."""
        return {**asdict(self), "ramp": list(self.ramp)}

    def next_share(self, share: float) -> float | None:
        """Return the next share on the ramp; None at its end."""
        return min((step for step in self.ramp if step > share), default=None)

    def planned_stages(self, first: float) -> int:
        """Return the number of stages if only the ramp changes the share after the `first` one."""
        return 1 + sum(step > first for step in self.ramp)


_POLICY = TypeAdapter(Policy)
