"""The versions that requests have named lately: those of people, and those of clients.

Keeps each for a while after its last request. Starts and stops nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

ModelVersion: TypeAlias = tuple[str, str]


class RequestedVersions:
    """Model and version of each request by name, for `seconds` after the last one."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._at: dict[bool, dict[ModelVersion, float]] = {False: {}, True: {}}

    def add(self, versions: Iterable[ModelVersion], *, by_clients: bool) -> bool:
        """Take note of requests, and return whether one of the versions is new."""
        known, requested = self._at[by_clients], set(versions)
        is_new = bool(requested - known.keys())
        known.update(dict.fromkeys(requested, self._clock()))
        return is_new

    def recent(self, *, by_clients: bool) -> Mapping[ModelVersion, float]:
        """Return the versions that are kept, with the time of the last request, and forget the others."""
        now = self._clock()
        self._at[by_clients] = {
            version: at for version, at in self._at[by_clients].items() if now - at < self._seconds
        }
        return self._at[by_clients]
