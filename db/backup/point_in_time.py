"""Going back to a point in time: copies of the embedded server's files, the log since, and playing it again.

Owns how such a copy is taken, laid out and recovered. Never touches a home that has data.
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
from db.embedded.account import Account, ensure_data_folder
from db.embedded.config import recovery_settings
from db.embedded.server import EmbeddedPostgres
from db.errors import BackupFailed, EmbeddedServerError

BASE: Final = "base.tar.gz"
_LOOK_SECONDS: Final = 0.1
# The SQLSTATE of those who ask before it answers.
_TOO_EARLY: Final = " 57P03 "


def copy_files(url: str, folder: Path) -> None:
    """Copies the files of a running server into `folder`, as `BASE`; writers go on.

    Raises:
        BackupFailed: the server keeps no log, or the tool failed.
    """
    with psycopg.connect(url) as connection:
        row = connection.execute("SHOW archive_mode").fetchone()
    if row is None or row[0] == "off":
        raise BackupFailed(
            "the database doesn't keep its log: set VALENCE_WAL_ARCHIVE and start the platform again"
        )
    arguments = ["--pgdata", str(folder), "--format", "tar", "--gzip", "--wal-method", "fetch"]
    run_tool("pg_basebackup", [*arguments, "--checkpoint", "fast", "--no-manifest"], url)


def recover(home: Path, base: Path, *, log: Path, until: datetime | None, archive: Path | None) -> None:
    """Lays a copy of the files into a home and plays the log kept in `log`/wal up to `until`, or to its end.

    Waits as long as that takes. The server then keeps its own log in `archive`, if one is given.

    Raises:
        EmbeddedServerError: the log can't be read or doesn't reach that time, or the server failed; the message has
            its reason.
    """
    account = Account.current()
    account.ensure_user()
    _require_log(log / "wal", account)
    _lay_out(home, base, account)
    server = EmbeddedPostgres(home, archive=archive, extra=recovery_settings(log.absolute() / "wal", until))
    try:
        server.start(timeout=float("inf"))
        while _in_recovery(server):
            time.sleep(_LOOK_SECONDS)
    except EmbeddedServerError as error:
        raise EmbeddedServerError(f"going back failed: {_last_fault(server.log) or error}") from error
    finally:
        server.stop()


def expire(archive: Path, copies: Mapping[Path, datetime], *, days: int) -> list[Path]:
    """Removes copies begun more than so many days ago, and the log that no copy needs any more: what went.

    The newest copy stays, however old: without one the log is worth nothing.
    """
    *older, newest = sorted(copies, key=lambda path: copies[path])
    oldest_wanted = datetime.now(UTC) - timedelta(days=days)
    expired = [path for path in older if copies[path] < oldest_wanted]
    oldest = next((path for path in older if path not in expired), newest)
    needed = copies[oldest].timestamp()
    expired += [path for path in (archive / "wal").glob("*.gz") if path.stat().st_mtime < needed]
    for path in expired:
        path.unlink()
    return expired


def _require_log(folder: Path, account: Account) -> None:
    """What the server can't read it would take for the log's end."""
    if not folder.is_dir():
        raise EmbeddedServerError(f"{folder} isn't there: name the folder that VALENCE_WAL_ARCHIVE named")
    server = pwd.getpwnam(account.server_user).pw_uid
    for path in folder.glob("*.gz"):
        state = path.stat()
        if account.is_separate and state.st_uid != server and not state.st_mode & stat.S_IROTH:
            raise EmbeddedServerError(
                f"the database's user {account.server_user} can't read {path}: "
                f"`chown -R {account.server_user} {folder}`"
            )
    if not account.can_enter(folder.resolve()):
        raise EmbeddedServerError(
            f"the database's user {account.server_user} can't enter {folder}: lay it elsewhere"
        )


def _lay_out(home: Path, base: Path, account: Account) -> None:
    folder = ensure_data_folder(home, account)
    fresh = folder / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    account.ensure_private_folder(fresh)
    with tarfile.open(base, "r:gz") as archive:
        archive.extractall(fresh, filter="tar")
    (fresh / "recovery.signal").touch(mode=0o600)
    entry = pwd.getpwnam(account.server_user)
    for path in (fresh, *fresh.rglob("*")):
        os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
    fresh.chmod(0o700)
    os.rename(fresh, folder / "data")


def _in_recovery(server: EmbeddedPostgres) -> bool:
    try:
        with psycopg.connect(server.url("postgres"), connect_timeout=2) as connection:
            row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
        return bool(row and row[0])
    except psycopg.OperationalError:
        if not server.is_running():
            raise EmbeddedServerError("the server ended") from None
        return True


def _last_fault(log: Path) -> str | None:
    """Why the server ended: its last words are that it did."""
    lines = log.read_text().splitlines() if log.exists() else []
    faults = [line for line in lines if (" FATAL: " in line or " PANIC: " in line) and _TOO_EARLY not in line]
    return faults[-1].split(": ", 1)[1].strip() if faults else None
