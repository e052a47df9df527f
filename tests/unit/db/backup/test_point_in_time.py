"""The archive of the log: a segment is complete or absent, never replaced, and stays while a copy needs it."""

import gzip
import io
import os
import subprocess
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from db.backup.point_in_time import BaseCopy, expire, read_first_segment
from db.embedded.config import archive_script, archive_settings, recovery_settings
from db.errors import BackupDamaged


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


NOW = datetime.now(UTC)
HISTORY = "00000002.history.gz"


def segment(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}{0:08X}{number:08X}"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return an archive with the segments 1 to 9, the label of a copy and the history of a timeline."""
    (tmp_path / "wal").mkdir()
    for name in [*map(segment, range(1, 10)), f"{segment(2)}.00000028.backup", HISTORY.removesuffix(".gz")]:
        (tmp_path / "wal" / f"{name}.gz").touch()
    return tmp_path


def copy_of(archive: Path, first: int, days_ago: float) -> BaseCopy:
    path = archive / f"{first}.backup"
    path.touch()
    return BaseCopy(path=path, begun=NOW - timedelta(days=days_ago), first_segment=segment(first))


def kept_in(archive: Path) -> set[str]:
    return {path.name.removesuffix(".gz") for path in (archive / "wal").iterdir()} - {
        HISTORY.removesuffix(".gz")
    }


def test_the_log_that_a_copy_needs_stays_whatever_its_files_times_say(archive: Path) -> None:
    for path in (archive / "wal").iterdir():
        os.utime(path, (0, 0))
    copies = [copy_of(archive, 2, 40), copy_of(archive, 5, 1), copy_of(archive, 8, 0)]
    removed = expire(archive, copies, days=30)
    assert copies[0].path in removed
    assert kept_in(archive) == set(map(segment, range(5, 10)))
    assert (archive / "wal" / HISTORY).exists()
    assert sorted(path.name for path in archive.glob("*.backup")) == ["5.backup", "8.backup"]


def test_the_log_that_no_copy_needs_goes_whatever_its_files_times_say(archive: Path) -> None:
    future = (NOW + timedelta(days=9)).timestamp()
    for path in (archive / "wal").iterdir():
        os.utime(path, (future, future))
    expire(archive, [copy_of(archive, 5, 1)], days=30)
    assert kept_in(archive) == set(map(segment, range(5, 10)))


def test_segments_of_another_timeline_are_judged_by_their_place(archive: Path) -> None:
    for number in (4, 6):
        (archive / "wal" / f"{segment(number, timeline=2)}.gz").touch()
    expire(archive, [copy_of(archive, 5, 1)], days=30)
    assert kept_in(archive) == {*map(segment, range(5, 10)), segment(6, timeline=2)}


def test_a_clock_that_leapt_ahead_removes_no_copy_at_once(archive: Path) -> None:
    days = range(130, 119, -1)
    copies = [copy_of(archive, number, ago) for number, ago in enumerate(days, start=1)]
    leapt = copy_of(archive, 20, 0)
    # Of the copies before the leap only what is older than 30 days and two days by the last of them would go.
    assert expire(archive, [*copies, leapt], days=30) == []
    assert expire(archive, [*copies, leapt], days=9) != []
    assert all(copy.path.exists() for copy in copies[5:])


def test_the_newest_copy_is_the_last_in_the_log_even_if_a_clock_stepped_back(archive: Path) -> None:
    newest = copy_of(archive, 8, 400)
    expire(archive, [copy_of(archive, 2, 0), newest], days=30)
    assert newest.path.exists()
    assert segment(2) in kept_in(archive)


def labelled(label: bytes, *, name: str = "backup_label") -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as base:
        entry = tarfile.TarInfo(name)
        entry.size = len(label)
        base.addfile(entry, io.BytesIO(label))
    file.seek(0)
    return file


def test_a_copy_says_which_log_it_needs() -> None:
    label = b"START WAL LOCATION: 2/7000028 (file 000000010000000200000007)\nCHECKPOINT LOCATION: 2/7000080\n"
    assert read_first_segment(labelled(label)) == "000000010000000200000007"
    for odd in (labelled(b"no label"), labelled(label, name="PG_VERSION"), io.BytesIO(b"no archive")):
        with pytest.raises(BackupDamaged, match=r"base\.tar\.gz"):
            read_first_segment(odd)
