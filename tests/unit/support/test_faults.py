"""The bookkeeping of the faults: recoveries, refusals, wrong answers, and the page's content."""

from itertools import islice
from pathlib import Path

import httpx
import pytest

from tests.support.faults import document
from tests.support.faults.catalogue import FAULTS, SHORT
from tests.support.faults.clients import judged
from tests.support.faults.ledger import Answer, Event, Kind, Ledger
from tests.support.faults.proof import same
from tests.support.faults.texts import texts
from tests.support.faults.trial import Result


def ledger_of(**ends: Kind) -> Ledger:
    """Return a ledger whose requests ended at these tenths of a second (`at_15` is 1.5)."""
    ledger = Ledger()
    ledger._events = [Event(at=int(name[3:]) / 10, kind=kind) for name, kind in ends.items()]
    return ledger


def steady(start: int, end: int) -> dict[str, Kind]:
    return {f"at_{tenth}": Kind.ANSWERED for tenth in range(start, end, 5)}


def test_recovery_is_the_first_answer_after_the_last_failure() -> None:
    ledger = ledger_of(
        **steady(0, 20), at_21=Kind.REFUSED, at_24=Kind.ANSWERED, at_26=Kind.FAILED, **steady(30, 60)
    )
    assert ledger.recovered(injured=1.8, now=5.6) == 3.0


def test_an_answer_before_a_silence_is_no_recovery() -> None:
    ledger = ledger_of(**steady(0, 20), at_21=Kind.ANSWERED, **steady(90, 120))
    assert ledger.recovered(injured=1.8, now=11.6) == 9.0


def test_a_platform_that_is_silent_or_has_only_just_answered_has_not_recovered() -> None:
    ledger = ledger_of(**steady(0, 20), at_21=Kind.REFUSED, **steady(30, 60))
    assert ledger.recovered(injured=1.8, now=8.0) is None
    assert ledger_of(at_20=Kind.REFUSED, at_30=Kind.ANSWERED).recovered(injured=1.8, now=3.5) is None


def test_what_ended_before_the_injury_does_not_count() -> None:
    assert ledger_of(at_5=Kind.FAILED, **steady(10, 40)).recovered(injured=0.8, now=4.0) == 1.0


@pytest.mark.parametrize(
    ("status", "headers", "kind", "said"),
    [
        (429, {"Retry-After": "1"}, Kind.REFUSED, "429"),
        (503, {"Retry-After": "2"}, Kind.REFUSED, "503"),
        (503, {}, Kind.FAILED, "503 without Retry-After"),
        (500, {"Retry-After": "1"}, Kind.FAILED, "500"),
        (404, {}, Kind.FAILED, "404"),
    ],
)
def test_only_429_and_503_that_say_when_are_refusals(
    status: int, headers: dict[str, str], kind: Kind, said: str
) -> None:
    assert judged(httpx.Response(status, headers=headers)) == (kind, said)


def answer(label: str = "positive", positive: float = 0.6, text: str = "good", version: str = "3") -> Answer:
    scores = {"negative": round(0.95 - positive, 6), "neutral": 0.05, "positive": positive}
    return Answer(id="1", text=text, model="sentiment", version=version, label=label, scores=scores)


def test_answers_are_the_same_within_the_tolerance() -> None:
    assert same(answer(), answer(positive=0.605), 0.01)
    assert not same(answer(), answer(positive=0.62), 0.01)
    assert not same(answer(), answer(version="2"), 0.01)
    assert not same(answer(), answer(text="another"), 0.01)
    assert not same(answer(), answer(label="negative"), 0.01)


def test_a_label_may_differ_only_where_two_scores_are_as_good_as_equal() -> None:
    assert same(answer(positive=0.476), answer(label="negative", positive=0.474), 0.01)


def test_texts_come_once() -> None:
    drawn = [*islice(texts(1), 5000), *islice(texts(2), 5000)]
    assert len(set(drawn)) == len(drawn)


def test_the_table_replaces_only_what_is_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    page.write_text(f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n")
    result = Result(
        name=FAULTS[0].name, sent=9, answered=5, refused=3, failed=1, wrong=0, lost=0, lasted=0, recovered=4.2,
        refusals={"503": 3}, failures={"ReadError": 1},
    )  # fmt: skip
    document.write(page, "a machine", FAULTS[:2], [result], {FAULTS[1].name: "root"})
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert "| 9 | 5 | 3 × 503 | 1 | 0 | 0 | 0.0 | 4.2 | 1 × ReadError |" in written
    assert "Not tried here: it needs root." in written


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    (page := tmp_path / "faults.md").write_text("nothing")
    with pytest.raises(ValueError, match="no markers"):
        document.write(page, "a machine", [], [], {})


def test_faults_have_names_of_their_own_and_the_short_ones_share_a_ground() -> None:
    named = {fault.name: fault for fault in FAULTS}
    assert len(named) == len(FAULTS)
    assert len({named[name].ground for name in SHORT}) == 1
