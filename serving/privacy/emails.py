"""E-mail addresses in a text, found from each `@` outwards: in a time that grows as the text does.

The addresses are those of presidio's pattern, which begins anew at every word and so takes the square of that time.
"""

from typing import Final

import regex  # type: ignore[import-untyped, import-not-found, unused-ignore]  # no types, and of an extra

from serving.privacy.masking import PersonalData, PersonalDataKind

_LOCAL: Final = regex.compile(r"[!#$%&'*+\-/=?^_`{|}~.\w]*+", regex.REVERSE)
_FIRST: Final = regex.compile(r"\b[^.]")
_DOMAIN: Final = regex.compile(r"\w++(?:-++\w++)*+(?:\.\w++(?:-++\w++)*+)++")


def find_emails(text: str) -> list[PersonalData]:
    """Return the addresses in a text, in order; no two overlap."""
    found: list[PersonalData] = []
    end, at = 0, text.find("@")
    while at >= 0:
        after = text.find("@", at + 1)
        start = _find_start(text, end, at)
        # No further than the next one: the library looks for the dot that it needs as far as it may.
        domain = None if start is None else _DOMAIN.match(text, at + 1, after if after >= 0 else len(text))
        if start is not None and domain is not None:
            end = int(domain.end())
            found.append(PersonalData(kind=PersonalDataKind.EMAIL, start=start, end=end))
        at = after
    return found


def _find_start(text: str, begin: int, at: int) -> int | None:
    """Return where the name before an `@` begins; None if there is none."""
    if at == begin or text[at - 1] == ".":
        return None
    name = _LOCAL.match(text, begin, at)
    first = _FIRST.search(text, name.start(), at) if name is not None else None
    return None if first is None else int(first.start())
