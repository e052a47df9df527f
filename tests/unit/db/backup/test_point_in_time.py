"""The script that archives the log: a segment is complete or absent, never replaced; repetition is harmless."""

import gzip
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from db.embedded.config import archive_script, archive_settings, recovery_settings


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "the archive's").mkdir()
    script = tmp_path / "archive.sh"
    script.write_text(archive_script(tmp_path / "the archive's"))
    return script


def keep(script: Path, segment: Path, name: str = "0001") -> int:
    return subprocess.run(["/bin/sh", script, segment, name], check=False, capture_output=True).returncode


def test_a_segment_is_kept_once_and_another_never_takes_its_place(script: Path, tmp_path: Path) -> None:
    segment, kept = tmp_path / "segment", tmp_path / "the archive's" / "0001.gz"
    segment.write_bytes(b"log" * 1000)
    assert keep(script, segment) == 0
    assert gzip.decompress(kept.read_bytes()) == b"log" * 1000
    assert keep(script, segment) == 0
    segment.write_bytes(b"another")
    assert keep(script, segment) != 0
    assert gzip.decompress(kept.read_bytes()) == b"log" * 1000
    assert [path.name for path in kept.parent.iterdir()] == ["0001.gz"]


def test_what_was_left_of_a_try_that_was_killed_is_written_over(script: Path, tmp_path: Path) -> None:
    segment, kept = tmp_path / "segment", tmp_path / "the archive's" / "0001.gz"
    segment.write_bytes(b"log")
    kept.with_name("0001.gz.part").write_bytes(b"a longer half of something")
    assert keep(script, segment) == 0
    assert gzip.decompress(kept.read_bytes()) == b"log"


def test_a_segment_that_cant_be_archived_is_reported_as_missing(script: Path, tmp_path: Path) -> None:
    assert keep(script, tmp_path / "none") != 0
    assert not (tmp_path / "the archive's" / "0001.gz").exists()


def test_a_percent_sign_in_a_path_is_no_placeholder() -> None:
    assert archive_settings(Path("/a%f/archive.sh"))["archive_command"] == "/bin/sh /a%%f/archive.sh %p %f"
    until = datetime(2026, 1, 31, 12, tzinfo=UTC)
    settings = recovery_settings(Path("/100%"), until)
    assert settings["restore_command"] == "test -f /100%%/%f.gz && gzip -dc /100%%/%f.gz > %p"
    assert settings["recovery_target_time"] == "2026-01-31T12:00:00+00:00"
    assert "recovery_target_time" not in recovery_settings(Path("/a"), None)
