"""The embedded PostgreSQL of one home: setup, start, stop, and recovery after any kill.

Owns the data directory, its socket and the server process. Only the OS users of the platform and the server can
connect: the socket's folder has mode 0700, the superuser signs in by `peer`, any other role by SCRAM. Never touches a
process of another directory.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from db.embedded.config import archive_script, archive_settings, build_configuration
from db.embedded.os_users import ServerUsers, ensure_data_folder, find_binaries
from db.embedded.tools import clean_environment, last_line
from db.errors import AlreadyOwned, EmbeddedServerError

SUPERUSER = "valence"
_SOCKET = ".s.PGSQL.5432"
_KEEP_LOG_BYTES = 10_000_000


class EmbeddedPostgres:
    """PostgreSQL 18 with pgvector under `home`/postgres; an acknowledged commit survives any kill.

    Under root, the server runs as the system user `valence-db`. If that user can't reach the home, the data is under
    /var/lib/valence and the home holds a link; unreachable binaries are copied there. The WAL is archived in
    `archive`/wal, if given; `extra` settings override the platform's.
    """

    def __init__(
        self, home: Path, *, archive: Path | None = None, extra: Mapping[str, str] | None = None
    ) -> None:
        self.home = home.absolute()
        self._archive = archive.absolute() if archive is not None else None
        self._extra = dict(extra or {})
        self._os_users = ServerUsers.current()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def initialise(self) -> None:
        """Create the data directory unless it exists; a kill midway leaves none.

        Raises EmbeddedServerError if the OS user, the folders or `initdb` failed; the message says why.
        """
        self._os_users.ensure_user()
        base = ensure_data_folder(self.home, self._os_users)
        binaries = find_binaries(self._os_users)
        data = base / "data"
        if data.exists():
            return
        draft = base / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        self._os_users.ensure_private_folder(draft)
        arguments = [
            *("--username", SUPERUSER, "--auth-local", "peer", "--auth-host", "reject"),
            *("--encoding", "UTF8", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            *("--locale", "C", "--data-checksums", "--no-instructions", "--pgdata", str(draft)),
        ]
        result = subprocess.run(
            [binaries / "initdb", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=clean_environment(),
            **self._os_users.subprocess_user(),
        )
        if result.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise EmbeddedServerError(f"initdb failed: {last_line(result.stderr)}")
        with os.fdopen(
            os.open(draft / "postgresql.conf", os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW), "w"
        ) as file:
            file.write("\ninclude = '../valence.conf'  # rewritten at every start\n")
        os.rename(draft, data)

    def start(self, timeout: float = 60.0) -> None:
        """Start the server as a child and wait until it answers; clean up after a kill first.

        Raises:
            AlreadyOwned: another process runs this home's server.
            EmbeddedServerError: it didn't start; the message ends with the last line of the server's log.
        """
        if self.is_running():
            return
        self.initialise()
        self._acquire_lock()
        try:
            self._end_orphans(timeout)
            self._configure()
            self._spawn()
            self._wait_until_ready(timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout: float = 30.0) -> None:
        """End the child by a fast shutdown, then by an immediate one, then by a kill, `timeout` seconds apart."""
        if self._process is not None:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
                if self._process.poll() is not None:
                    break
                self._process.send_signal(number)
                try:
                    self._process.wait(timeout)
                except subprocess.TimeoutExpired:
                    continue
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_running(self) -> bool:
        """Return whether the server that this object started is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The server process, for a supervisor that waits for its end."""
        if self._process is None:
            raise EmbeddedServerError("the embedded server isn't running")
        return self._process

    @property
    def log(self) -> Path:
        """The server's log: names and codes, never values of rows."""
        return self._base / "log"

    def url(self, database: str = SUPERUSER) -> str:
        """Return the URL of a database on this server."""
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(self.sockets), safe='/')}"

    def create_database(self, name: str) -> str:
        """Create a database unless it exists, and return its URL."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    @property
    def _base(self) -> Path:
        return (self.home / "postgres").resolve()

    @property
    def _data(self) -> Path:
        return self._base / "data"

    @property
    def sockets(self) -> Path:
        """The folder of the server's socket, which only its user may enter."""
        return self._os_users.socket_folder(self._base)

    def _acquire_lock(self) -> None:
        """Lock the home for this process; the kernel releases the lock when the process ends."""
        if self._lock is not None:
            return
        file = (self._base / "owner.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise AlreadyOwned(
                f"another process runs the database of {self.home}: use it, or stop it first (`valence down`)"
            ) from None
        self._lock = file

    def _end_orphans(self, timeout: float) -> None:
        """End an orphaned server of this directory, and remove the locks it left."""
        deadline = time.monotonic() + timeout
        for number in (signal.SIGINT, signal.SIGQUIT):
            postmaster = self._postmaster()
            if postmaster is None:
                break
            postmaster.send_signal(number)
            psutil.wait_procs([postmaster], timeout=timeout / 2)
        while remaining := self._processes():
            # Backends of a killed postmaster still use its shared memory; they end on their own.
            if time.monotonic() > deadline:
                pids = ", ".join(str(process.pid) for process in remaining)
                raise EmbeddedServerError(
                    f"an earlier server of this home doesn't exit (processes {pids}): end it"
                )
            time.sleep(0.05)
        # No process of this directory is alive, so its lock is stale even if its pid is in use again.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            (self.sockets / name).unlink(missing_ok=True)

    def _processes(self) -> list[psutil.Process]:
        """Return the live server processes of this data directory: it is the working directory of each."""
        processes = []
        for process in psutil.process_iter():
            try:
                if process.name() == "postgres" and process.cwd() == str(self._data):
                    processes.append(process)
            except psutil.Error:
                continue
        return processes

    def _postmaster(self) -> psutil.Process | None:
        """Return the process among them whose parent isn't among them."""
        processes = self._processes()
        pids = {process.pid for process in processes}
        for process in processes:
            try:
                if process.ppid() not in pids and self._recorded_pid() == process.pid:
                    return process
            except psutil.Error:
                continue
        return None

    def _recorded_pid(self) -> int | None:
        try:
            return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def _configure(self) -> None:
        users = {self._os_users.platform_user, self._os_users.server_user}
        maps = "".join(f'valence "{user}" {SUPERUSER}\n' for user in sorted(users))
        self._os_users.write_file(self._base / "pg_ident.conf", maps)
        # Every other role needs its password; the server stores only the verifier.
        rules = (
            f"local all {SUPERUSER} peer map=valence\n"
            f"local replication {SUPERUSER} peer map=valence\n"
            "local all all scram-sha-256\n"
        )
        self._os_users.write_file(self._base / "pg_hba.conf", rules)
        extra = dict(self._extra)
        if self._archive is not None:
            script = self._base / "archive.sh"
            self._os_users.write_file(script, archive_script(self._os_users.ensure_wal_folder(self._archive)))
            extra |= archive_settings(script)
        settings = build_configuration(
            memory=psutil.virtual_memory().total, base=self._base, sockets=self.sockets, extra=extra
        )
        self._os_users.write_file(self._base / "valence.conf", settings)

    def _spawn(self) -> None:
        if self.log.exists() and self.log.stat().st_size > _KEEP_LOG_BYTES:
            self.log.replace(self.log.with_name("log.1"))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [find_binaries(self._os_users) / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=clean_environment(),
                # A new session, so that Ctrl-C lets the platform drain before its database ends.
                start_new_session=True,
                **self._os_users.subprocess_user(),
            )

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if not self.is_running():
                raise EmbeddedServerError(
                    f"the database server exited at start: {last_line(self.log.read_text())}"
                )
            try:
                with psycopg.connect(self.url("postgres"), connect_timeout=2):
                    return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"the database server doesn't answer after {timeout:.0f} s: {last_line(str(error))}"
                    ) from error
            time.sleep(0.05)
