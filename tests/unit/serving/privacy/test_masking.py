"""Personal data in texts: every kind is found and masked, and other text stays unchanged."""

import asyncio
import logging
import string
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import phonenumbers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.errors import Invalid
from serving.privacy.emails import find_emails
from serving.privacy.masking import (
    TEXT,
    TEXTS,
    BodyLocation,
    PersonalData,
    PersonalDataKind,
    TextMasker,
    mask_spans,
    merge_spans,
)
from serving.privacy.pii import PatternTimedOut, PersonalDataFinder
from tests.support import breadth

pytestmark = pytest.mark.anyio

SPANS = st.lists(
    st.builds(
        lambda kind, start, length: PersonalData(kind=kind, start=start, end=start + length),
        st.sampled_from(PersonalDataKind),
        st.integers(0, 40),
        st.integers(1, 15),
    ),
    max_size=8,
)


def luhn(digits: str) -> str:
    """Return the digits with the check digit of a card number."""
    total = sum(
        sum(divmod(2 * int(digit), 10)) if index % 2 == 0 else int(digit)
        for index, digit in enumerate(reversed(digits))
    )
    return digits + str(-total % 10)


def iban(country: str, account: str) -> str:
    """Return the account with the check digits of an IBAN."""
    number = "".join(
        str(string.digits.find(c) if c.isdigit() else ord(c) - 55) for c in f"{account}{country}00"
    )
    return f"{country}{98 - int(number) % 97:02}{account}"


def grouped(text: str, separator: str) -> str:
    return separator.join(text[at : at + 4] for at in range(0, len(text), 4))


WORD = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=10)
EMAILS = st.builds(
    lambda name, host, top, sign: f"{name}{sign}x@{host}.{top}",
    WORD,
    WORD,
    st.sampled_from(["com", "org", "de", "co.uk", "internal", "example"]),
    st.sampled_from([".", "+", "_", "-"]),
)
CARDS = st.builds(
    lambda digits, separator: grouped(luhn(f"4{digits}"), separator),
    st.text(string.digits, min_size=14, max_size=14),
    st.sampled_from(["", " ", "-"]),
)
IBANS = st.builds(
    lambda account, separator, lower: grouped(
        iban("DE", account).lower() if lower else iban("DE", account), separator
    ),
    st.text(string.digits, min_size=18, max_size=18),
    st.sampled_from(["", " "]),
    st.booleans(),
)
IPS = (
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
    .map(str)
    .filter(lambda ip: ip not in ("::", "0.0.0.0"))
)
REGIONS = ("US", "GB", "DE", "FR", "IN")
FORMATS = (phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164)
PHONES = st.builds(
    lambda region, form: phonenumbers.format_number(
        phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE), form
    ),
    st.sampled_from(REGIONS),
    st.sampled_from(FORMATS),
)
DATA = st.one_of(
    *(
        st.tuples(st.just(kind), values)
        for kind, values in (
            (PersonalDataKind.EMAIL, EMAILS),
            (PersonalDataKind.CARD, CARDS),
            (PersonalDataKind.IBAN, IBANS),
            (PersonalDataKind.IP, IPS),
            (PersonalDataKind.PHONE, PHONES),
        )
    )
)
PROSE = st.lists(
    st.sampled_from(["good", "très", "bad,", "ГОРЬКО", "ok!", "\n", "\U0001f600", "the"]), max_size=6
)
FINDING = settings(max_examples=breadth.examples(60), deadline=None)


@pytest.fixture(scope="module")
def find() -> PersonalDataFinder:
    return PersonalDataFinder()


@FINDING
@given(before=PROSE, data=DATA, after=PROSE)
def test_every_kind_is_found_wherever_it_stands(
    find: PersonalDataFinder, before: list[str], data: tuple[PersonalDataKind, str], after: list[str]
) -> None:
    kind, value = data
    text = " ".join([*before, value, *after])
    start = text.index(value)
    spans = merge_spans(find(text))
    assert any(span.start <= start and span.end >= start + len(value) for span in spans), (kind, spans)
    left = mask_spans(text, spans)
    assert value not in left
    # A masked text holds no personal data, so masking it again changes nothing.
    assert mask_spans(left, merge_spans(find(left))) == left


@FINDING
@given(text=st.text(string.ascii_letters + " .,;-+!?'\"%<>()/\n", max_size=200))
@example(text="The battery lasts all day and the screen is a joy.")
def test_a_text_without_any_stays_as_it_is(find: PersonalDataFinder, text: str) -> None:
    assert mask_spans(text, merge_spans(find(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        "It cost 29.99, on 2026-11-25 at 10:30, version 3.2.1, 5 of 5 stars",
        "1984, 42 times, 100 % sure; room 12b; 16:9; 7/10",
        "me @ the cinema, @home, a@b",
        "4111 1111 1111 1112 is no card's number, by its last digit",
    ],
)
def test_ordinary_numbers_and_signs_are_left(find: PersonalDataFinder, text: str) -> None:
    assert [span for span in merge_spans(find(text)) if span.kind is not PersonalDataKind.PHONE] == []


def test_wide_forms_of_letters_hide_nothing(find: PersonalDataFinder) -> None:
    text = "mail ａｄａ＠ｅｘａｍｐｌｅ．ｃｏｍ or １０．１．２．３"
    assert mask_spans(text, merge_spans(find(text))) == "mail <EMAIL> or <IP>"


@given(text=st.text(min_size=60, max_size=60), spans=SPANS)
def test_masking_removes_the_spans_and_nothing_else(text: str, spans: list[PersonalData]) -> None:
    chosen = merge_spans(spans)
    covered = {at for span in spans for at in range(span.start, span.end)}
    assert {at for span in chosen for at in range(span.start, span.end)} == covered
    assert all(first.end <= second.start for first, second in pairwise(chosen))
    kept = "".join(letter for at, letter in enumerate(text) if at not in covered)
    words = iter(f"<{span.kind.upper()}>" for span in chosen)
    rebuilt, end = "", 0
    for span in chosen:
        rebuilt += text[end : span.start] + next(words)
        end = span.end
    assert mask_spans(text, chosen) == rebuilt + text[end:]
    assert len(mask_spans(text, chosen)) == len(kept) + sum(len(span.kind) + 2 for span in chosen)


async def test_refusing_says_what_lies_where_and_never_the_value(find: PersonalDataFinder) -> None:
    privacy = TextMasker(find, "refuse")
    texts = ["fine", "write to ada@example.org", "at 10.1.2.3"]
    with pytest.raises(Invalid) as caught:
        await privacy.mask(texts, TEXTS)
    assert [problem.loc for problem in caught.value.problems] == [("body", "texts", 1), ("body", "texts", 2)]
    message = " ".join([str(caught.value), *(problem.message for problem in caught.value.problems)])
    assert "email" in message
    assert "characters 9 to 24" in message
    assert "ada" not in message
    assert "10.1" not in message
    assert await privacy.mask(["fine"], TEXT) == ["fine"]
    with pytest.raises(Invalid) as caught:
        await privacy.mask(texts[1:2], BodyLocation(("body", "comment"), many=False))
    assert caught.value.problems[0].loc == ("body", "comment")


async def test_many_texts_are_masked_in_order_off_the_event_loop(find: PersonalDataFinder) -> None:
    texts = [f"text {index} by u{index}@example.org " + "x" * 100 for index in range(100)]
    masked_texts = await TextMasker(find, "mask").mask(texts, TEXTS)
    assert masked_texts == [f"text {index} by <EMAIL> " + "x" * 100 for index in range(100)]


async def test_a_search_for_personal_data_leaves_the_event_loop_unless_the_text_is_tiny() -> None:
    threads = set()

    def find(_text: str) -> list[PersonalData]:
        threads.add(threading.current_thread())
        return []

    await TextMasker(find, "mask").mask(["x" * 200], TEXT)
    assert threads == {threading.main_thread()}
    threads.clear()
    await TextMasker(find, "mask").mask(["x" * 201], TEXT)
    assert threading.main_thread() not in threads


class Stalled:
    """A search that takes until `release`; counts the texts."""

    def __init__(self) -> None:
        self.begun, self.release, self.searched = threading.Event(), threading.Event(), 0

    def __call__(self, _text: str) -> list[PersonalData]:
        self.begun.set()
        self.release.wait(20)
        self.searched += 1
        return []


async def test_a_request_has_one_deadline_for_all_of_its_texts() -> None:
    find = Stalled()
    masker = TextMasker(find, "mask", seconds=0.05)
    with pytest.raises(Invalid, match="fewer at once"):
        await masker.mask(["x" * 4000] * 100, TEXTS)
    find.release.set()
    masker.threads.shutdown(wait=True)
    assert find.searched == 1


async def test_the_search_stops_when_the_client_leaves() -> None:
    find = Stalled()
    masker = TextMasker(find, "mask")
    work = asyncio.create_task(masker.mask(["x" * 4000] * 100, TEXTS))
    await asyncio.to_thread(find.begun.wait, 20)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    find.release.set()
    masker.threads.shutdown(wait=True)
    assert find.searched == 1


async def test_a_large_request_lets_others_have_their_turns() -> None:
    order: list[str] = []

    def find(text: str) -> list[PersonalData]:
        order.append(text[0])
        return []

    masker = TextMasker(find, "mask", threads=ThreadPoolExecutor(1))
    await asyncio.gather(masker.mask(["a" * 4000] * 50, TEXTS), masker.mask(["b" * 4000], TEXT))
    assert order.index("b") <= 2


ADDRESS_PARTS = st.text("ab1.@-_+! é\u0301ß\n'", max_size=40)


@settings(max_examples=breadth.examples(300), deadline=None)
@given(text=ADDRESS_PARTS)
def test_addresses_are_those_of_presidio_s_pattern(text: str) -> None:
    from presidio_analyzer.predefined_recognizers import EmailRecognizer

    recogniser = EmailRecognizer()
    recogniser.validate_result = lambda _: None
    expected = sorted(
        (each.start, each.end) for each in recogniser.analyze(text, recogniser.supported_entities)
    )
    assert [(each.start, each.end) for each in find_emails(text)] == expected


@pytest.mark.parametrize(
    "part", ["a.", "a@", "a.a@a-", "@", "+a", "a@a.", "a", ".", "+", ".+", "a@a"], ids=repr
)
def test_addresses_are_found_in_a_time_that_grows_as_the_text_does(part: str) -> None:
    """Half a million characters: the square of that time would be hours."""
    find_emails(part * (500_000 // len(part)) + "@")


def test_what_cannot_be_decided_in_time_is_refused(
    find: PersonalDataFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from presidio_analyzer import pattern_recognizer

    monkeypatch.setattr(pattern_recognizer, "REGEX_TIMEOUT_SECONDS", 1e-9)
    with pytest.raises(PatternTimedOut, match="in parts"):
        find("10.1.2.3 " * 5000)


def test_no_engine_is_loaded_with_the_recognisers() -> None:
    program = (
        "import sys; from serving.privacy.pii import PersonalDataFinder; found = PersonalDataFinder()('10.1.2.3')\n"
        "assert found and not {'torch', 'transformers', 'tensorflow', 'stanza'} & set(sys.modules)\n"
        "import torch"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_found_is_logged(find: PersonalDataFinder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        find("ada@example.org, DE89370400440532013000, 4111 1111 1111 1111")
    assert "ada@" not in caplog.text
    assert "DE89" not in caplog.text


@pytest.mark.parametrize(
    "part", ["a", "a.", "1", "1 ", "a@", "DE11", ":", "1.", "1:", "+1", "DE11 AAAA ", "(1", "212-555-"]
)
def test_no_text_keeps_a_pattern_busy(find: PersonalDataFinder, part: str) -> None:
    """The longest texts of the hardest kinds for the patterns: masked or refused within seconds."""
    text = (part * 20_000)[:20_000]
    started = time.monotonic()
    with suppress(PatternTimedOut):
        find(text)
    assert time.monotonic() - started < 15
