"""Endless different texts, as different as their sentiments, so that mixed-up answers are noticed."""

import random
from collections.abc import Iterator
from itertools import count

_OPENINGS = (
    "After a week of use", "Frankly", "For the price", "My sister says that", "On the second day", "As a gift",
    "Compared to the old one", "In the rain", "At the office", "To my surprise",
)  # fmt: skip
_SUBJECTS = (
    "the battery", "the screen", "the plot of this film", "the waiter", "the delivery", "the keyboard", "her voice",
    "the hotel room", "the manual", "the update", "customer service", "the coffee",
)  # fmt: skip
_VERDICTS = (
    "is a joy", "broke at once", "is what the box says", "could not be better", "is a waste of money", "is blue",
    "made me smile", "made me angry", "arrived on Tuesday", "is the worst I have seen", "deserves every star",
    "is neither good nor bad", "smells of smoke", "works like a charm", "was closed", "is painfully slow",
)  # fmt: skip
_ENDINGS = (
    "and I would buy it again", "so I sent it back", "as far as I can tell", "which nobody had told us",
    "and that is all there is to say", "and the children love it", "but who cares",
)  # fmt: skip


def texts(seed: int) -> Iterator[str]:
    """Yield texts in an order that the seed fixes."""
    chosen = random.Random(seed)
    for number in count():
        opening, subject, verdict, ending = map(chosen.choice, (_OPENINGS, _SUBJECTS, _VERDICTS, _ENDINGS))
        yield f"{opening} {subject} {verdict}, {ending} ({seed:x}-{number})."
