"""Presidio's pattern recognisers, called one by one: no language model, no network. Heavy to import.

Owns which of them are asked, and for what texts that is worth it.
"""

import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from serving.errors import Invalid, NotReady
from serving.privacy.masking import PersonalData, PersonalDataKind

_SECONDS: Final = 2
# Read by presidio when it is imported; by itself it would try for a minute.
os.environ.setdefault("REGEX_TIMEOUT_SECONDS", str(_SECONDS))
_TIMED_OUT: Final = "timed out"
# What presidio and spaCy load if it is there, for engines that nobody asks here: 300 MiB.
_NEEDLESS: Final = ("torch", "tensorflow", "transformers", "stanza")
_SHORTEST_PHONE: Final = 5
_DIGIT: Final = re.compile(r"\d")
_UPPER: Final = {ord(letter): ord(letter) - 32 for letter in "abcdefghijklmnopqrstuvwxyz"}


class PatternTimedOut(Invalid):
    """A text on which a pattern can't be decided in time, so that it can't be said to hold no personal data."""


class _FailClosed(logging.Handler):
    """Presidio says in its log alone that it gave a pattern up."""

    def emit(self, record: logging.LogRecord) -> None:
        if _TIMED_OUT in record.msg:
            raise PatternTimedOut("a text can't be searched for personal data in time: send it in parts")


class PersonalDataFinder:
    """Finds e-mail addresses, phone and card numbers, IBANs and IP addresses.

    Any e-mail address counts, also one of a domain that isn't public. Phone numbers are those of presidio's regions
    (US, GB, DE, FR, IL, IN, CA, BR) and any with a country code.
    """

    def __init__(self) -> None:
        try:
            with _kept_out(*_NEEDLESS):
                from presidio_analyzer.predefined_recognizers import (
                    CreditCardRecognizer,
                    EmailRecognizer,
                    IbanRecognizer,
                    IpRecognizer,
                    PhoneRecognizer,
                )
        except ModuleNotFoundError as error:
            raise NotReady(
                f"VALENCE_PRIVACY needs {error.name}: `pip install 'valence[privacy]'`, or set it to off"
            ) from error

        class AnyEmail(EmailRecognizer):  # type: ignore[misc, unused-ignore]  # untyped
            """Without the list of public suffixes, which is fetched from the network."""

            def validate_result(self, pattern_text: str) -> None:  # noqa: ARG002
                return None

        log = logging.getLogger("presidio-analyzer")
        if not any(isinstance(handler, _FailClosed) for handler in log.handlers):
            log.addHandler(_FailClosed())
        # Its messages may quote what was found; those that are listened for come at any threshold of ours.
        log.propagate = False
        log.setLevel(logging.WARNING)
        self._email: tuple[tuple[PersonalDataKind, Any], ...] = ((PersonalDataKind.EMAIL, AnyEmail()),)
        self._numbers: tuple[tuple[PersonalDataKind, Any], ...] = (
            (PersonalDataKind.CARD, CreditCardRecognizer()),
            (PersonalDataKind.IP, IpRecognizer()),
        )
        self._iban = IbanRecognizer()
        self._phone = PhoneRecognizer()

    def __call__(self, text: str) -> Sequence[PersonalData]:
        """All that is found; spans may overlap.

        Raises:
            Undecided: a pattern takes too long on it.
        """
        plain = text if text.isascii() else "".join(map(_plain, text))
        found: list[PersonalData] = []
        if "@" in plain:
            found += _asked(self._email, plain)
        digits = len(_DIGIT.findall(plain))
        if digits or plain.count(":") > 1:
            found += _asked(self._numbers, plain)
            # It knows capitals alone.
            found += _asked(((PersonalDataKind.IBAN, self._iban),), plain.translate(_UPPER))
        # By far the slowest: it reads a text once a region.
        if digits >= _SHORTEST_PHONE:
            found += _asked(((PersonalDataKind.PHONE, self._phone),), plain)
        return found


def _asked(recognisers: Sequence[tuple[PersonalDataKind, Any]], text: str) -> list[PersonalData]:
    return [
        PersonalData(kind=kind, start=result.start, end=result.end)
        for kind, recogniser in recognisers
        for result in recogniser.analyze(text, recogniser.supported_entities)
    ]


def _plain(letter: str) -> str:
    """The letter that this one is a form of, if it is one: positions stay what they are."""
    form = unicodedata.normalize("NFKC", letter)
    return form if len(form) == 1 else letter


@contextmanager
def _kept_out(*names: str) -> Iterator[None]:
    """As if these modules weren't installed, but for those that are loaded already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is how Python spells it
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
