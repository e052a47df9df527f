"""A real PgBouncer in transaction mode, in front of the embedded server, with SCRAM and optional TLS."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from db.embedded.os_users import ServerUsers
from db.embedded.server import EmbeddedPostgres
from tests.support.clock import eventually
from tests.support.ports import find_free_port
from tests.support.tools import required_tool


@dataclass(frozen=True, kw_only=True)
class Pooler:
    """The port of a pooler, and the passwords of its users."""

    port: int
    passwords: Mapping[str, str]

    def url(self, user: str, database: str, **options: str) -> str:
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
        return f"postgresql://{user}:{self.passwords[user]}@localhost:{self.port}/{database}?{query}"


@contextmanager
def pgbouncer(
    server: EmbeddedPostgres,
    passwords: Mapping[str, str],
    *,
    lines: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
) -> Iterator[Pooler]:
    """Run PgBouncer over TCP on loopback; one server connection serves many clients.

    `lines`: more of its configuration; `files`: settings that name a file, which is copied for it.
    """
    program = required_tool("pgbouncer")
    os_users = ServerUsers.current()
    port = find_free_port()
    with tempfile.TemporaryDirectory(prefix="valence-pgbouncer-") as folder:
        root = Path(folder)
        users = "".join(f'"{name}" "{password}"\n' for name, password in passwords.items())
        (root / "users.txt").write_text(users)
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(root / "users.txt"),
            "pool_mode": "transaction",
            "default_pool_size": "6",
            "logfile": str(root / "log"),
            **(lines or {}),
            **{name: shutil.copy(path, root) for name, path in (files or {}).items()},
        }
        content = f"[databases]\n* = host={server.sockets}\n[pgbouncer]\n"
        content += "".join(f"{name} = {value}\n" for name, value in settings.items())
        (root / "pgbouncer.ini").write_text(content)
        if os_users.is_separate:
            # PgBouncer runs as the server's user: it refuses root, and the socket's folder refuses others.
            entry = pwd.getpwnam(os_users.server_user)
            for path in (root, *root.iterdir()):
                path.chmod(0o755)
                os.chown(path, entry.pw_uid, entry.pw_gid)
        process = subprocess.Popen(
            [program, "-q", str(root / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **os_users.subprocess_user(),
        )
        pooler = Pooler(port=port, passwords=passwords)

        def up() -> bool:
            assert process.poll() is None, (root / "log").read_text()
            try:
                with psycopg.connect(host="127.0.0.1", port=port, user="nobody", connect_timeout=2):
                    return True
            except psycopg.OperationalError as error:
                # A refusal of an unknown user is an answer, too.
                return "refused" not in str(error)

        try:
            eventually(up, within=20, what="PgBouncer answers")
            yield pooler
        finally:
            process.kill()
            process.wait()
