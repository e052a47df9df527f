"""The ledger: the answers of clients with their times; it computes counts and the time to recover."""

import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock

QUIET_SECONDS = 1.0
MOST_REQUESTS = 50_000


class Kind(StrEnum):
    """The end of a request for its client."""

    ANSWERED = "answered"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An acknowledged prediction, as its client keeps it."""

    id: str
    text: str
    model: str
    version: str
    label: str
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """The end of a request: its time on the monotonic clock, its kind, and the message if not answered."""

    at: float
    kind: Kind
    said: str = ""


class Ledger:
    """The end of every request, in order of time; several threads may write."""

    def __init__(self, most: int = MOST_REQUESTS) -> None:
        self._most = most
        self._lock = Lock()
        self._events: list[Event] = []
        self.answers: list[Answer] = []

    def answered(self, answer: Answer) -> None:
        """Record an acknowledged prediction."""
        with self._lock:
            self.answers.append(answer)
            self._events.append(Event(at=time.monotonic(), kind=Kind.ANSWERED))

    def ended(self, kind: Kind, said: str) -> None:
        """Record a refusal or a failure."""
        with self._lock:
            self._events.append(Event(at=time.monotonic(), kind=kind, said=said))

    @property
    def full(self) -> bool:
        """Return whether no more requests may be sent."""
        return len(self._events) >= self._most

    def count(self, kind: Kind | None = None) -> int:
        """Return the number of ended requests, in all or of one kind."""
        return sum(kind in (None, event.kind) for event in self._seen())

    def said(self, kind: Kind) -> dict[str, int]:
        """Return the messages of requests of this kind, most frequent first."""
        return dict(Counter(event.said for event in self._seen() if event.kind is kind).most_common())

    def recovered(self, injured: float, now: float | None = None) -> float | None:
        """Return the time of the first answer after which nothing failed and no second was silent.

        None if it still fails or is silent, or has answered for less than a second.
        """
        now = time.monotonic() if now is None else now
        begun: float | None = None
        last = injured
        for event in self._seen():
            if event.at < injured:
                continue
            if event.kind is not Kind.ANSWERED:
                begun = None
                continue
            if begun is None or event.at - last > QUIET_SECONDS:
                begun = event.at
            last = event.at
        if begun is None or now - last > QUIET_SECONDS or now - begun < QUIET_SECONDS:
            return None
        return begun

    def _seen(self) -> list[Event]:
        with self._lock:
            return list(self._events)
