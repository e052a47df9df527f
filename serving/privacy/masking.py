"""What becomes of personal data in texts before a model reads them and the database keeps them: masked, or refused.

Owns the decision and the words put in the place of data. Never says, logs or keeps what it found.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from serving.errors import Invalid, Problem

# Below, finding takes less than handing the work to a thread would be worth.
_INLINE_CHARACTERS: Final = 4_000


class PersonalDataKind(StrEnum):
    """A kind of personal data; where two overlap, the first of them names the whole."""

    EMAIL = "email"
    IBAN = "iban"
    CARD = "card"
    IP = "ip"
    PHONE = "phone"


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonalData:
    """Where personal data lies in a text: characters [start, end)."""

    kind: PersonalDataKind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BodyLocation:
    """Where in a request a text lies, or several in a list: what a problem names."""

    path: tuple[str | int, ...]
    many: bool = True

    def of(self, index: int) -> tuple[str | int, ...]:
        """The place of one of them."""
        return (*self.path, index) if self.many else self.path


TEXT: Final = BodyLocation(("body", "text"), many=False)
TEXTS: Final = BodyLocation(("body", "texts"))

Finder: TypeAlias = Callable[[str], Sequence[PersonalData]]


class TextMasker:
    """Nothing that the finder finds passes: it is masked, or the whole request is refused.

    The finder is called from several threads.
    """

    def __init__(self, find: Finder, mode: Literal["mask", "refuse"]) -> None:
        self._find = find
        self._mode = mode

    async def admit(self, texts: Sequence[str], place: BodyLocation) -> Sequence[str]:
        """The texts as they may be read and kept, in order.

        Raises:
            Invalid: there is personal data in them, and the mode is to refuse it; says what kind lies where.
        """
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            found = self._all(texts)
        else:
            found = await asyncio.to_thread(self._all, texts)
        if self._mode == "refuse":
            _refuse(found, place)
        return [mask_spans(text, spans) for text, spans in zip(texts, found, strict=True)]

    def _all(self, texts: Sequence[str]) -> list[list[PersonalData]]:
        return [merge_spans(self._find(text)) for text in texts]


def merge_spans(found: Sequence[PersonalData]) -> list[PersonalData]:
    """The same characters in spans that don't overlap, in order."""
    spans: list[PersonalData] = []
    for each in sorted(found, key=lambda span: span.start):
        if spans and each.start < spans[-1].end:
            last = spans[-1]
            kind = min(last.kind, each.kind, key=list(PersonalDataKind).index)
            spans[-1] = PersonalData(kind=kind, start=last.start, end=max(last.end, each.end))
        else:
            spans.append(each)
    return spans


def mask_spans(text: str, spans: Sequence[PersonalData]) -> str:
    """The text with the name of its kind in the place of each span, e.g. `<EMAIL>`; spans as `merged` has them."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], f"<{span.kind.upper()}>"]
        end = span.end
    return "".join([*parts, text[end:]])


def _refuse(found: Sequence[Sequence[PersonalData]], place: BodyLocation) -> None:
    problems = [
        Problem(
            loc=place.of(index),
            message=f"it holds personal data ({span.kind}) at characters {span.start} to {span.end}: remove it",
        )
        for index, spans in enumerate(found)
        for span in spans
    ]
    if problems:
        raise Invalid("personal data is refused here", problems)
