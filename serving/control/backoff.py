"""What could not be started or loaded, why, and since when: left alone for a while before it is tried again."""

from collections.abc import Callable
from typing import Final

RETRY_SECONDS: Final = 10.0


class Backoff:
    """The last failure of each bundle, by its digest; `clock` in seconds, never stepping back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, tuple[str, float]] = {}

    def note(self, digest: str, reason: str) -> bool:
        """Keep it; whether it is news."""
        before = self.reason(digest)
        self._last[digest] = (reason, self._clock())
        return before != reason

    def forget(self, digest: str) -> None:
        """It works now."""
        self._last.pop(digest, None)

    def reason(self, digest: str) -> str | None:
        """Why it failed; None if it didn't."""
        found = self._last.get(digest)
        return None if found is None else found[0]

    def lately(self, digest: str) -> bool:
        """Whether it is too early to try it again."""
        found = self._last.get(digest)
        return found is not None and self._clock() - found[1] < RETRY_SECONDS
