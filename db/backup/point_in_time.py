"""Recovery to a point in time: copies of files and replay of the WAL.

Owns how a copy is taken, unpacked and recovered. Never touches a home that has data.
"""

import os
import pwd
import shutil
import stat
import tarfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg

from db.backup.dump import run_tool
from db.core.blocking import fetch_value
from db.embedded.config import recovery_settings
from db.embedded.os_users import ServerUsers, ensure_data_folder
from db.embedded.server import EmbeddedPostgres
from db.errors import BackupFailed, EmbeddedServerError

BASE: Final = "base.tar.gz"
_POLL_SECONDS: Final = 0.1
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


def expire(archive: Path, copies: Mapping[Path, datetime], *, days: int) -> list[Path]:
    """Remove copies older than `days` and the WAL segments that no remaining copy needs; return the removed files.

    The newest copy stays, however old: the WAL is useless without one.
    """
    *older, newest = sorted(copies, key=lambda path: copies[path])
    cutoff = datetime.now(UTC) - timedelta(days=days)
    expired = [path for path in older if copies[path] < cutoff]
    oldest = next((path for path in older if path not in expired), newest)
    needed = copies[oldest].timestamp()
    expired += [path for path in (archive / "wal").glob("*.gz") if path.stat().st_mtime < needed]
    for path in expired:
        path.unlink()
    return expired


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
    with tarfile.open(base, "r:gz") as archive:
        archive.extractall(draft, filter="tar")
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
