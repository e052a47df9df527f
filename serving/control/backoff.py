"""Failed starts and loads of bundles, and the pause before the next attempt."""

from collections.abc import Callable
from typing import Final

RETRY_SECONDS: Final = 10.0


class Backoff:
    """The last failure of each bundle, by its digest; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[str, float]] = {}

    def add(self, digest: str, reason: str) -> bool:
        """Store a failure; return whether its reason is a new one."""
        previous = self.reason(digest)
        self._failures[digest] = (reason, self._clock())
        return previous != reason

    def clear(self, digest: str) -> None:
        """Forget the failure of a bundle that works now."""
        self._failures.pop(digest, None)

    def reason(self, digest: str) -> str | None:
        """Return the reason of the last failure, None if there was none."""
        failure = self._failures.get(digest)
        return None if failure is None else failure[0]

    def is_active(self, digest: str) -> bool:
        """Return whether it is too early for another attempt."""
        failure = self._failures.get(digest)
        return failure is not None and self._clock() - failure[1] < RETRY_SECONDS
