"""Masking or refusal of personal data in texts, before a model reads them and the database keeps them.

Owns the decision and the words that replace the data. Never shows, logs or keeps the data that it finds.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from serving.errors import Invalid, Problem

# Up to this size a search takes a few milliseconds at most, and handing it to a thread nearly as long as most take.
_INLINE_CHARACTERS: Final = 200
# The texts that a thread searches in one go: after each go another request may have its turn, or this one may end.
_GO_CHARACTERS: Final = 4_000
_SECONDS: Final = 10.0
_THREADS: Final = 2


class PersonalDataKind(StrEnum):
    """A kind of personal data. If two overlap, the one listed first names both."""

    EMAIL = "email"
    IBAN = "iban"
    CARD = "card"
    IP = "ip"
    PHONE = "phone"


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonalData:
    """A span of personal data in a text: characters [start, end)."""

    kind: PersonalDataKind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BodyLocation:
    """The location of a text, or of a list of texts, in a request's body."""

    path: tuple[str | int, ...]
    many: bool = True

    def of(self, index: int) -> tuple[str | int, ...]:
        """Return the location of the text at this index."""
        return (*self.path, index) if self.many else self.path


TEXT: Final = BodyLocation(("body", "text"), many=False)
TEXTS: Final = BodyLocation(("body", "texts"))

Finder: TypeAlias = Callable[[str], Sequence[PersonalData]]


@dataclass(frozen=True, slots=True)
class TextMasker:
    """Masks all personal data that `find` reports, or refuses the whole request.

    `find` is called from several threads, and no longer once the caller of `mask` has left.
    """

    find: Finder
    mode: Literal["mask", "refuse"]
    seconds: float = _SECONDS
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, "valence-privacy"), repr=False
    )

    async def mask(self, texts: Sequence[str], location: BodyLocation) -> Sequence[str]:
        """Return the texts as they may be read and kept, in order.

        Raises:
            Invalid: the texts hold personal data and the mode is "refuse", and it names each kind and location; or
                they can't be searched in time.
        """
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            spans = self._find_all(texts)
        else:
            spans = await self._find_aside(texts)
        if self.mode == "refuse":
            _refuse(spans, location)
        return [mask_spans(text, each) for text, each in zip(texts, spans, strict=True)]

    async def _find_aside(self, texts: Sequence[str]) -> list[list[PersonalData]]:
        loop = asyncio.get_running_loop()
        spans: list[list[PersonalData]] = []
        try:
            async with asyncio.timeout(self.seconds):
                for go in _split(texts):
                    spans += await loop.run_in_executor(self.threads, self._find_all, go)
        except TimeoutError:
            raise Invalid(
                f"the texts can't be searched for personal data in {self.seconds:g} s: send fewer at once"
            ) from None
        return spans

    def _find_all(self, texts: Sequence[str]) -> list[list[PersonalData]]:
        return [merge_spans(self.find(text)) for text in texts]


def _split(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in groups of few characters, at least one in each."""
    start = size = 0
    for index, text in enumerate(texts):
        if index > start and size + len(text) > _GO_CHARACTERS:
            yield texts[start:index]
            start, size = index, 0
        size += len(text)
    yield texts[start:]


def merge_spans(spans: Sequence[PersonalData]) -> list[PersonalData]:
    """Merge spans that overlap; return the spans in order.

    The kind of a merged span is the one that `PersonalDataKind` lists first.
    """
    merged: list[PersonalData] = []
    for each in sorted(spans, key=lambda span: span.start):
        if merged and each.start < merged[-1].end:
            last = merged[-1]
            kind = min(last.kind, each.kind, key=list(PersonalDataKind).index)
            merged[-1] = PersonalData(kind=kind, start=last.start, end=max(last.end, each.end))
        else:
            merged.append(each)
    return merged


def mask_spans(text: str, spans: Sequence[PersonalData]) -> str:
    """Replace each span by the name of its kind, e.g. `<EMAIL>`; the spans are those of `merge_spans`."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], f"<{span.kind.upper()}>"]
        end = span.end
    return "".join([*parts, text[end:]])


def _refuse(spans: Sequence[Sequence[PersonalData]], location: BodyLocation) -> None:
    problems = [
        Problem(
            loc=location.of(index),
            message=f"the text holds personal data ({span.kind}) at characters {span.start} to {span.end}: remove it",
        )
        for index, each in enumerate(spans)
        for span in each
    ]
    if problems:
        raise Invalid("personal data is refused here", problems)
