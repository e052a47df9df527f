"""Whether the soak tells growth from peaks."""

from pathlib import Path

import pytest

from benchmarks.soak.__main__ import BEGIN, END
from benchmarks.soak.growth import growth
from tests.support.tables import write_between

MINUTES = [60.0 * minute for minute in range(45)]


def test_a_steady_measure_with_peaks_is_flat() -> None:
    values = [900.0 + (400.0 if minute % 7 == 0 else minute % 3) for minute in range(45)]
    found = growth(MINUTES, values)
    assert found.greatest == 1300.0
    assert abs(found.an_hour) < 5
    assert found.is_flat(share=0.05, allowance=16)


def test_a_leak_is_not_flat() -> None:
    found = growth(MINUTES, [900.0 + 2.0 * minute for minute in range(45)])
    assert found.an_hour == pytest.approx(120.0)
    assert not found.is_flat(share=0.05, allowance=16)


def test_a_page_keeps_what_is_around_the_result(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_between(page, BEGIN, END, ["new"])
    write_between(page, BEGIN, END, ["newer"])
    assert page.read_text() == f"before\n{BEGIN}\nnewer\n{END}\nafter\n"
