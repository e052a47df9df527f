"""The log of a home: read by level and time, followed across rotations, and bounded."""

import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving.standalone.log_file import LogFile, LogLine

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def entry(event: str, *, level: str = "info", minute: int = 0) -> str:
    at = NOON.replace(minute=minute).isoformat()
    return json.dumps({"event": event, "level": level, "timestamp": at, "process": "ingress"}) + "\n"


def events(lines: Iterable[LogLine | None]) -> list[object]:
    return [line and (line.fields.get("event") or line.text) for line in lines]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def append(file: Path, text: str) -> None:
    with file.open("a") as writer:
        writer.write(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "platform.log"
    file.write_text(
        entry("first")
        + entry("second", level="warning", minute=1)
        + "Traceback: a library printed this\n"
        + entry("third", level="critical", minute=2)
        + "after an error\n"
    )
    return file


def test_lines_are_read_by_level_and_time_with_the_text_that_follows_them(file: Path) -> None:
    log = LogFile(file)
    spoken, shouted = "Traceback: a library printed this", "after an error"
    assert events(log.read()) == ["first", "second", spoken, "third", shouted]
    assert events(log.read(level="warning")) == ["second", spoken, "third", shouted]
    assert events(log.read(level="error")) == ["third", shouted]
    assert events(log.read(since=NOON.replace(minute=2))) == ["third", shouted]
    first = next(log.read())
    assert first is not None
    assert (first.at, first.level, first.fields) == (NOON, "info", {"event": "first", "process": "ingress"})


def test_a_home_without_a_log_is_told_apart_from_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(LogFile(tmp_path / "none").read())
    (tmp_path / "empty").touch()
    assert events(LogFile(tmp_path / "empty").read()) == []


def test_new_lines_are_followed_whole_and_across_a_rotation(file: Path) -> None:
    log = LogFile(file)
    steps = iter(("half", "rest", "rotated", "end"))

    class Ended(Exception):
        pass

    def wait() -> None:
        match next(steps):
            case "half":
                append(file, entry("fourth")[:20])
            case "rest":
                append(file, entry("fourth")[20:])
            case "rotated":
                assert log.rotate(0)
                append(file, entry("fifth", level="error"))
            case "end":
                raise Ended

    found: list[LogLine | None] = []
    with suppress(Ended):
        for line in log.read(since=NOON, wait=wait):
            found.append(line)  # noqa: PERF402  # what was found before the end counts
    assert [each for each in events(found[5:]) if each] == ["fourth", "fifth"]


def test_a_log_is_bounded_by_its_parts_and_stays_open_for_its_writers(tmp_path: Path) -> None:
    file = tmp_path / "platform.log"
    log = LogFile(file, parts=2)
    with file.open("a", buffering=1) as writer:
        for number in range(8):
            writer.write(entry(f"{number}"))
            rotated = log.rotate(len(entry("0")))
            assert rotated == (number % 2 == 1)
        assert events(log.read()) == ["4", "5", "6", "7"]
        writer.write(entry("last"))
    assert events(log.read())[-1] == "last"
    assert names(tmp_path) == ["platform.log", "platform.log.1", "platform.log.2"]


def test_a_log_that_cant_be_put_aside_stays_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_text()

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("serving.standalone.log_file.shutil.copyfileobj", fail)
    with pytest.raises(OSError, match="No space"):
        LogFile(file).rotate(0)
    assert file.read_text() == before
    assert names(file.parent) == ["platform.log"]
