"""Backup files: complete or absent, checked by name, and never from a later release."""

import hashlib
import io
import json
import os
import re
import stat
import tarfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.backup.archive import FORMAT, MANIFEST, Backup, BackupEntry, BackupWriter
from db.errors import BackupDamaged, BackupTooNew, BackupUnwritable
from tests.support import breadth


def write_archive(target: Path, contents: dict[str, bytes], scratch: Path) -> Path:
    with BackupWriter(target) as writer:
        for name, content in contents.items():
            (scratch / "piece").write_bytes(content)
            writer.add(name, scratch / "piece")
        writer.finish(contents="dump", release="1", schema="0001", server="18", artifacts="file:///a")
    return target


def test_what_goes_in_comes_out_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"\0" * 70_000)
    target = tmp_path / "b.backup"
    with BackupWriter(target) as writer:
        writer.add_folder("artifacts", folder)
        writer.add_text("installation.key", "ab")
        assert not target.exists()
        writer.finish(contents="dump", release="1", schema="0001", server="18", artifacts="file:///a")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "b.backup"]
    with closing(Backup(target)) as result:
        result.check()
        assert result.manifest.files["artifacts/deep/weights"].size == 70_000
        result.extract_folder("artifacts", tmp_path / "out")
        assert result.text("installation.key") == "ab"
    assert (tmp_path / "out" / "deep" / "weights").read_bytes() == b"\0" * 70_000


def test_a_backup_that_fails_leaves_nothing_and_none_is_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "b.backup"
    with pytest.raises(ZeroDivisionError), BackupWriter(target) as writer:  # noqa: PT012
        writer.add_text("a", "a")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    target.write_text("mine")
    with pytest.raises(BackupUnwritable, match=r"b\.backup"):
        BackupWriter(target)
    assert target.read_text() == "mine"
    with pytest.raises(BackupUnwritable, match="no folder"):
        BackupWriter(tmp_path / "nowhere" / "b.backup")


def test_a_file_that_grows_meanwhile_is_as_long_as_it_was(tmp_path: Path) -> None:
    growing = tmp_path / "growing"
    growing.write_bytes(b"x" * 10)
    with BackupWriter(tmp_path / "b") as writer, growing.open("ab") as more:
        size = os.fstat(more.fileno()).st_size
        with growing.open("rb") as file:
            more.write(b"y" * 10)
            more.flush()
            writer._add("growing", file, size)
        writer.finish(contents="dump", release="1", schema=None, server="18", artifacts="file:///a")
    with closing(Backup(tmp_path / "b")) as result:
        result.check()
        assert result.manifest.files["growing"] == BackupEntry(
            size=10, sha256=hashlib.sha256(b"x" * 10).hexdigest()
        )


def test_the_damaged_file_is_named(tmp_path: Path) -> None:
    target = write_archive(
        tmp_path / "b", {"one": b"1" * 2000, "two": b"2" * 2000, "three": b"3" * 2000}, tmp_path
    )
    content = bytearray(target.read_bytes())
    content[content.index(b"2" * 2000) + 1000] ^= 1
    target.write_bytes(content)
    with closing(Backup(target)) as result, pytest.raises(BackupDamaged, match="two differs"):
        result.check()


@settings(
    max_examples=breadth.examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(st.data())
def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path: Path, data: st.DataObject) -> None:
    target = tmp_path / "b"
    target.unlink(missing_ok=True)
    write_archive(target, {"one": b"first" * 300, "two": b"second" * 300}, tmp_path)
    content = bytearray(target.read_bytes())
    if data.draw(st.booleans()):
        # After the end there is only padding.
        content = content[: data.draw(st.integers(0, len(content.rstrip(b"\0")) - 1))]
    else:
        with tarfile.open(target) as archive:
            held = [(entry.offset_data, entry.size) for entry in archive.getmembers()]
        offset, size = data.draw(st.sampled_from(held))
        content[offset + data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    target.write_bytes(content)
    with pytest.raises(BackupDamaged):  # noqa: SIM117
        with closing(Backup(target)) as result:
            result.check()


def test_a_later_format_is_refused_with_the_release_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr("db.backup.archive.FORMAT", FORMAT + 1)
        write_archive(tmp_path / "b", {"one": b"1"}, tmp_path)
    with pytest.raises(BackupTooNew, match=f"format {FORMAT + 1}.*Valence 1 or later"):
        Backup(tmp_path / "b")


def test_a_name_that_leads_out_of_the_backup_is_damage(tmp_path: Path) -> None:
    target = write_archive(tmp_path / "b", {"../evil": b"1"}, tmp_path)
    with pytest.raises(BackupDamaged, match="evil"):
        Backup(target)
    with pytest.raises(BackupDamaged, match="not a backup"):
        Backup(Path(__file__))


def forge(target: Path, manifest: object, *more: tarfile.TarInfo) -> Path:
    """Write a backup with this manifest and its digest, as anybody could."""
    written = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    with tarfile.open(target, "w") as archive:
        digest = hashlib.sha256(written).hexdigest().encode()
        for name, content in ((MANIFEST, written), ("manifest.sha256", digest)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in more:
            archive.addfile(entry)
    return target


GOOD = {
    "format": FORMAT, "contents": "dump", "created_at": "2026-01-31T12:00:00+00:00", "release": "1", "schema": "0001",
    "server": "18", "artifacts": "file:///a", "files": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"no json", "JSON"),
        (b"\xff\xfe", "JSON"),
        ([], "it:"),
        ({}, "format"),
        ({**GOOD, "format": "soon"}, "format"),
        ({key: value for key, value in GOOD.items() if key != "files"}, "files"),
        ({key: value for key, value in GOOD.items() if key != "created_at"}, "created_at"),
        ({**GOOD, "created_at": "yesterday"}, "created_at"),
        ({**GOOD, "created_at": "2026-01-31T12:00:00"}, "created_at"),
        ({**GOOD, "contents": "everything"}, "contents"),
        ({**GOOD, "schema": 12}, "schema"),
        ({**GOOD, "files": ["a"]}, "files"),
        ({**GOOD, "files": {"a": 1}}, "files.a"),
        ({**GOOD, "files": {"a": {"size": -1, "sha256": "0"}}}, "files.a.size"),
        ({**GOOD, "files": {"a": {"size": 1}}}, "files.a.sha256"),
        *(
            ({**GOOD, "files": {name: {"size": 1, "sha256": "0"}}}, "isn't a path inside")
            for name in ("", ".", "/a", "a/../b", "a//b", "a\0b")
        ),
    ],
)
def test_an_odd_manifest_is_damage_in_one_line(tmp_path: Path, manifest: object, said: str) -> None:
    target = forge(tmp_path / "b", manifest)
    with pytest.raises(BackupDamaged, match=re.escape(said)) as raised:
        Backup(target)
    assert str(target) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_link_in_a_backup_is_damage(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("a")
    entry.type, entry.linkname = tarfile.SYMTYPE, "nowhere"
    manifest = {**GOOD, "files": {"a": {"size": 0, "sha256": "0"}}}
    forged = forge(tmp_path / "b", manifest, entry)
    with closing(Backup(forged)) as result, pytest.raises(BackupDamaged, match="a is missing"):
        result.check()


def test_the_manifest_says_what_it_must(tmp_path: Path) -> None:
    target = write_archive(tmp_path / "b", {"one": b"1"}, tmp_path)
    with tarfile.open(target) as archive:
        file = archive.extractfile(MANIFEST)
        assert file is not None
        manifest = json.loads(file.read())
    with closing(Backup(target)) as result:
        stored = asdict(result.manifest)
        assert manifest == {**stored, "created_at": stored["created_at"].isoformat()}
    assert manifest["files"]["one"]["sha256"] == hashlib.sha256(b"1").hexdigest()
    assert (manifest["format"], manifest["schema"], manifest["server"]) == (FORMAT, "0001", "18")
