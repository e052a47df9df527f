"""Logging never gets in the way of what is logged."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from serving.logs import configure_logging


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    structlog.get_logger().warning("something.happened", number=3)
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["number"]) == ("something.happened", "warning", 3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_costs_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115  (closing it fails)
    monkeypatch.setattr(sys, "stderr", full)
    configure_logging("info")
    structlog.get_logger().error("x" * 100_000)
    structlog.get_logger().error("again")
    with suppress(OSError):
        full.close()
