"""The errors of the serving layer, as one tree.

ServingError
├── Unauthenticated          the credentials are missing or wrong
├── Forbidden                the role does not suffice
├── NotFound                 no such thing, or another holder's
├── Conflict                 it contradicts the present state
│   └── Refused              a version may not become champion
├── Invalid                  the input can't be used
├── EvaluationFailed         a version has no report
├── Unreadable               a stored value can't be decrypted
├── TooLarge                 more than the platform takes at once
├── TooSlow                  the request didn't come in time
├── InternalError            a fault of the platform
└── Retryable                try again later
    ├── Overloaded           no room now
    │   └── RateLimited      the key has reached its limit
    └── NotReady             a part is missing or down
        ├── ModelNotReady
        └── StoreUnavailable

They know nothing of HTTP: one table in `serving.api.errors` maps them to responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One fault of an input: its path of names and indices, and the reason."""

    loc: tuple[str | int, ...]
    message: str


class ServingError(Exception):
    """A request could not be served; the message says why and what to do."""


class Unauthenticated(ServingError):
    """The credentials are missing, wrong, expired or revoked."""


class Forbidden(ServingError):
    """The credentials are good, but their role does not allow this."""


class NotFound(ServingError):
    """The named thing does not exist, or belongs to another holder."""


class Conflict(ServingError):
    """The request contradicts the present state."""


class Refused(Conflict):
    """A version may not become champion; `report` is the report of the gates, if they ran."""

    def __init__(self, message: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = report


class Invalid(ServingError):
    """The input can't be used; `problems` lists the faults."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class EvaluationFailed(ServingError):
    """An evaluation ended without a report."""


class Unreadable(ServingError):
    """A stored value can't be decrypted: its key isn't given, or it isn't what was stored there."""


class TooLarge(ServingError):
    """The request holds more than the platform takes at once."""


class TooSlow(ServingError):
    """The request didn't come in time."""


class InternalError(ServingError):
    """A fault of the platform, which no change of the request avoids."""


class Retryable(ServingError):
    """The same request may succeed later, after `retry_after` seconds.

    `reason`: the cause in the platform's own terms, such as paths, for engineers only; `message` leaves it out.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0, reason: str | None = None) -> None:
        super().__init__(f"{message}: {reason}" if reason else message)
        self.message = message
        self.retry_after = retry_after


class Overloaded(Retryable):
    """The queue is full."""


class RateLimited(Overloaded):
    """The key has reached its rate limit."""


class NotReady(Retryable):
    """A part of the platform that this request needs is missing or down."""


class ModelNotReady(NotReady):
    """The requested version doesn't answer yet."""


class StoreUnavailable(NotReady):
    """The database can't be written or read now; nothing was acknowledged."""
