"""Presidio's pattern recognizers, called one by one: no language model, no network. Heavy to import.

Owns the choice of recognizers, and of the texts that each is worth running on.
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
# Presidio reads this when it is imported; its default is a minute.
os.environ.setdefault("REGEX_TIMEOUT_SECONDS", str(_SECONDS))
_TIMED_OUT: Final = "timed out"
# Presidio and spaCy load these if they are installed, for engines that aren't used here: 300 MiB.
_UNUSED: Final = ("torch", "tensorflow", "transformers", "stanza")
_SHORTEST_PHONE: Final = 5
_DIGIT: Final = re.compile(r"\d")
_UPPER: Final = {ord(letter): ord(letter) - 32 for letter in "abcdefghijklmnopqrstuvwxyz"}


class PatternTimedOut(Invalid):
    """A pattern took too long on a text, so nobody knows whether it holds personal data."""


class _FailClosed(logging.Handler):
    """Raises when presidio gives up a pattern, which it reports in its log alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if _TIMED_OUT in record.msg:
            raise PatternTimedOut("a text can't be searched for personal data in time: send it in parts")


class PersonalDataFinder:
    """Finds e-mail addresses, phone and card numbers, IBANs and IP addresses.

    Any e-mail address counts, also one whose domain isn't public. Phone numbers are those of presidio's regions
    (US, GB, DE, FR, IL, IN, CA, BR) and any with a country code.
    """

    def __init__(self) -> None:
        try:
            with _hide_modules(*_UNUSED):
                from presidio_analyzer.predefined_recognizers import (
                    CreditCardRecognizer,
                    IbanRecognizer,
                    IpRecognizer,
                    PhoneRecognizer,
                )

                from serving.privacy.emails import find_emails
        except ModuleNotFoundError as error:
            raise NotReady(
                f"VALENCE_PRIVACY needs {error.name}: `pip install 'valence[privacy]'`, or set it to off"
            ) from error

        log = logging.getLogger("presidio-analyzer")
        if not any(isinstance(handler, _FailClosed) for handler in log.handlers):
            log.addHandler(_FailClosed())
        # Its messages may quote what it found. The handler needs its warnings, whatever our own threshold is.
        log.propagate = False
        log.setLevel(logging.WARNING)
        self._find_emails = find_emails
        self._numbers: tuple[tuple[PersonalDataKind, Any], ...] = (
            (PersonalDataKind.CARD, CreditCardRecognizer()),
            (PersonalDataKind.IP, IpRecognizer()),
        )
        self._iban = IbanRecognizer()
        self._phone = PhoneRecognizer()

    def __call__(self, text: str) -> Sequence[PersonalData]:
        """Return all personal data in a text; spans may overlap.

        Raises:
            Undecided: a pattern takes too long on the text.
        """
        plain = text if text.isascii() else "".join(map(_plain, text))
        spans: list[PersonalData] = []
        if "@" in plain:
            spans += self._find_emails(plain)
        digits = len(_DIGIT.findall(plain))
        if digits or plain.count(":") > 1:
            spans += _recognize(self._numbers, plain)
            # This recognizer reads capitals only.
            spans += _recognize(((PersonalDataKind.IBAN, self._iban),), plain.translate(_UPPER))
        # By far the slowest: it reads the text once for each region.
        if digits >= _SHORTEST_PHONE:
            spans += _recognize(((PersonalDataKind.PHONE, self._phone),), plain)
        return spans


def _recognize(recognizers: Sequence[tuple[PersonalDataKind, Any]], text: str) -> list[PersonalData]:
    return [
        PersonalData(kind=kind, start=result.start, end=result.end)
        for kind, recognizer in recognizers
        for result in recognizer.analyze(text, recognizer.supported_entities)
    ]


def _plain(letter: str) -> str:
    """Return the plain letter of which this one is a form; positions in the text don't change."""
    form = unicodedata.normalize("NFKC", letter)
    return form if len(form) == 1 else letter


@contextmanager
def _hide_modules(*names: str) -> Iterator[None]:
    """Make these modules look as if they weren't installed, except those that are loaded already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is how Python spells it
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
