"""Recovery to a point in time: copies of files and replay of the WAL.

Owns how a copy is taken, unpacked and recovered. Never touches a home that has data.
"""

import os
import pwd
import re
import shutil
import stat
import tarfile
import time
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final

import psycopg

from db.backup.dump import run_tool
from db.core.blocking import fetch_value
from db.embedded.config import recovery_settings
from db.embedded.os_users import ServerUsers, ensure_data_folder
from db.embedded.server import EmbeddedPostgres
from db.errors import BackupDamaged, BackupFailed, EmbeddedServerError

BASE: Final = "base.tar.gz"
_POLL_SECONDS: Final = 0.1
_LABEL: Final = "backup_label"
_LABEL_BYTES: Final = 1 << 16
_FIRST_SEGMENT: Final = re.compile(rb"^START WAL LOCATION: \S+ \(file ([0-9A-F]{24})\)$", re.MULTILINE)
_TIMELINE_DIGITS: Final = 8
# Segments, the parts of one, and labels of copies; not the histories of timelines, which are small and always needed.
_ARCHIVED: Final = re.compile(r"[0-9A-F]{8}(?P<position>[0-9A-F]{16})(\.partial|\.[0-9A-F]{8}\.backup)?\.gz")
_MOST_STEP: Final = timedelta(days=2)
# The SQLSTATE for clients that connect before the server is ready.
_NOT_READY: Final = " 57P03 "


def copy_files(url: str, folder: Path) -> None:
    """Copy the files of a running server into `folder`, as `BASE`, while writers continue.

    Raises BackupFailed if the server archives no WAL, or the tool failed.
    """
    with psycopg.connect(url) as connection:
        archive_mode = fetch_value(connection, "SHOW archive_mode")
    if archive_mode in (None, "off"):
        raise BackupFailed(
            "the database doesn't archive its WAL: set VALENCE_WAL_ARCHIVE and restart the platform"
        )
    arguments = ["--pgdata", str(folder), "--format", "tar", "--gzip", "--wal-method", "fetch"]
    run_tool("pg_basebackup", [*arguments, "--checkpoint", "fast", "--no-manifest"], url)


def recover(
    home: Path, base: Path, *, wal_archive: Path, until: datetime | None, archive: Path | None
) -> None:
    """Unpack a copy of the files into a home and replay the WAL in `wal_archive`/wal up to `until`, or to its end.

    Waits without limit. The server then archives its own WAL in `archive`, if given.

    Raises:
        BackupDamaged: the copy can't be unpacked, or holds what is no file inside it.
        EmbeddedServerError: the WAL can't be read or ends before `until`, or the server failed; the message holds
            the reason.
    """
    os_users = ServerUsers.current()
    os_users.ensure_user()
    _require_wal(wal_archive / "wal", os_users)
    _unpack(home, base, os_users)
    server = EmbeddedPostgres(
        home, archive=archive, extra=recovery_settings(wal_archive.absolute() / "wal", until)
    )
    try:
        server.start(timeout=float("inf"))
        while _in_recovery(server):
            time.sleep(_POLL_SECONDS)
    except EmbeddedServerError as error:
        raise EmbeddedServerError(f"recovery failed: {_last_fault(server.log) or error}") from error
    finally:
        server.stop()


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseCopy:
    """A copy of the files: when it was begun, and the name of the first WAL segment that it needs."""

    path: Path
    begun: datetime
    first_segment: str

    @property
    def position(self) -> str:
        """Return the first segment's place in the WAL, without its timeline."""
        return self.first_segment[_TIMELINE_DIGITS:]


def read_first_segment(base: IO[bytes]) -> str:
    """Return the name of the first WAL segment that a copy of the files needs.

    Raises BackupDamaged if the copy doesn't say.
    """
    try:
        # The server puts its label first, so not much is read.
        with tarfile.open(fileobj=base, mode="r|gz") as archive:
            for entry in archive:
                if entry.name == _LABEL and entry.isreg() and (label := archive.extractfile(entry)):
                    if found := _FIRST_SEGMENT.search(label.read(_LABEL_BYTES)):
                        return found[1].decode()
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise BackupDamaged(f"{BASE} is damaged: {error}") from error
    raise BackupDamaged(f"{BASE} doesn't say which WAL it needs")


def expire(archive: Path, copies: Collection[BaseCopy], *, days: int) -> list[Path]:
    """Remove copies older than `days` and the WAL segments that no remaining copy needs; return the removed files.

    The newest copy stays, however old: the WAL is useless without one. So do copies that are younger than `days` and
    two days by the time of the copy before the newest: a clock that has leapt ahead removes nothing at once.
    """
    # By their places in the WAL, which no clock changes.
    *older, newest = sorted(copies, key=lambda copy: copy.position)
    now = datetime.now(UTC)
    if older:
        now = min(now, older[-1].begun + _MOST_STEP)
    expired = [copy for copy in older if copy.begun < now - timedelta(days=days)]
    needed = min(copy.position for copy in (*older, newest) if copy not in expired)
    archived = [(path, _ARCHIVED.fullmatch(path.name)) for path in (archive / "wal").glob("*.gz")]
    paths = [copy.path for copy in expired]
    paths += [path for path, segment in archived if segment is not None and segment["position"] < needed]
    for path in paths:
        path.unlink()
    return paths


def _require_wal(folder: Path, os_users: ServerUsers) -> None:
    """Raise unless the server can read every file: it takes an unreadable one for the WAL's end."""
    if not folder.is_dir():
        raise EmbeddedServerError(f"{folder} doesn't exist: give the folder that VALENCE_WAL_ARCHIVE named")
    server = pwd.getpwnam(os_users.server_user).pw_uid
    for path in folder.glob("*.gz"):
        state = path.stat()
        if os_users.is_separate and state.st_uid != server and not state.st_mode & stat.S_IROTH:
            raise EmbeddedServerError(
                f"the database's user {os_users.server_user} can't read {path}: "
                f"`chown -R {os_users.server_user} {folder}`"
            )
    if not os_users.can_enter(folder.resolve()):
        raise EmbeddedServerError(
            f"the database's user {os_users.server_user} can't enter {folder}: move it to a folder it can enter"
        )


def _unpack(home: Path, base: Path, os_users: ServerUsers) -> None:
    folder = ensure_data_folder(home, os_users)
    draft = folder / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    os_users.ensure_private_folder(draft)
    try:
        with tarfile.open(base, "r:gz") as archive:
            archive.extractall(draft, filter="data")
    except tarfile.FilterError as error:
        raise BackupDamaged(f"{BASE} isn't a copy of a server's files: {error}") from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise BackupDamaged(f"{BASE} is damaged: {error}") from error
    (draft / "recovery.signal").touch(mode=0o600)
    entry = pwd.getpwnam(os_users.server_user)
    for path in (draft, *draft.rglob("*")):
        os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
    draft.chmod(0o700)
    os.rename(draft, folder / "data")


def _in_recovery(server: EmbeddedPostgres) -> bool:
    try:
        with psycopg.connect(server.url("postgres"), connect_timeout=2) as connection:
            return bool(fetch_value(connection, "SELECT pg_is_in_recovery()"))
    except psycopg.OperationalError:
        if not server.is_running():
            raise EmbeddedServerError("the server exited") from None
        return True


def _last_fault(log: Path) -> str | None:
    """Return the last fatal message in the server's log: the very last line only says that the server exited."""
    lines = log.read_text().splitlines() if log.exists() else []
    faults = [line for line in lines if (" FATAL: " in line or " PANIC: " in line) and _NOT_READY not in line]
    return faults[-1].split(": ", 1)[1].strip() if faults else None
