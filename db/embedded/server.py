"""The embedded PostgreSQL of one home: set up, started, stopped, and recovered after any kill.

Owns the data directory, its socket and the server process. Nobody but the platform's OS user and the server's
own can connect: a socket in a folder of mode 0700, `peer` for the superuser, SCRAM for any other role. Never touches
a process of another directory.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from db.embedded.account import Account, ensure_data_folder, find_binaries
from db.embedded.config import archive_script, archive_settings, build_configuration
from db.errors import AlreadyOwned, EmbeddedServerError

SUPERUSER = "valence"
_SOCKET = ".s.PGSQL.5432"
_KEEP_LOG_BYTES = 10_000_000


class EmbeddedPostgres:
    """PostgreSQL 18 with pgvector under `home`/postgres; an acknowledged commit survives any kill.

    Run by root, the server is a process of the system user `valence-db`; where that user can't reach the
    home, the data lies under /var/lib/valence and the home holds a link. Binaries out of reach are copied.
    `archive`: a folder to which the log is kept, under `wal`; `extra` settings go before those of the platform.
    """

    def __init__(
        self, home: Path, *, archive: Path | None = None, extra: Mapping[str, str] | None = None
    ) -> None:
        self.home = home.absolute()
        self._archive = archive.absolute() if archive is not None else None
        self._extra = dict(extra or {})
        self._account = Account.current()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def initialise(self) -> None:
        """Makes the data directory unless it exists; a kill in the middle leaves none.

        Raises:
            EmbeddedServerError: the account, the folders or `initdb` failed; the message says how.
        """
        self._account.ensure_user()
        base = ensure_data_folder(self.home, self._account)
        bin_ = find_binaries(self._account)
        data = base / "data"
        if data.exists():
            return
        fresh = base / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        self._account.ensure_private_folder(fresh)
        arguments = [
            *("--username", SUPERUSER, "--auth-local", "peer", "--auth-host", "reject"),
            *("--encoding", "UTF8", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
            *("--locale", "C", "--data-checksums", "--no-instructions", "--pgdata", str(fresh)),
        ]
        done = subprocess.run(
            [bin_ / "initdb", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=_environment(),
            **self._account.subprocess_identity(),
        )
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise EmbeddedServerError(f"initdb failed: {_last_line(done.stderr)}")
        with os.fdopen(
            os.open(fresh / "postgresql.conf", os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW), "w"
        ) as file:
            file.write("\ninclude = '../valence.conf'  # written anew at every start\n")
        os.rename(fresh, data)

    def start(self, timeout: float = 60.0) -> None:
        """Starts the server as a child and waits until it answers; recovers what a kill left behind.

        Raises:
            AlreadyOwned: another process runs this home's server.
            EmbeddedServerError: it didn't come up; the message ends with the log's last line.
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
        """Ends the child by a fast shutdown, and by an immediate one if that takes longer than `timeout`."""
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
        """Whether the server that this object started is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The server process, for a supervisor to wait on."""
        if self._process is None:
            raise EmbeddedServerError("the embedded server isn't running")
        return self._process

    @property
    def log(self) -> Path:
        """The server's log: names and codes, never values of rows."""
        return self._base / "log"

    def url(self, database: str = SUPERUSER) -> str:
        """The URL of a database on this server."""
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(self.sockets), safe='/')}"

    def create_database(self, name: str) -> str:
        """Makes a database unless it exists; returns its URL."""
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
        return self._account.socket_folder(self._base)

    def _acquire_lock(self) -> None:
        """One owner a home, until it stops or dies: the kernel drops the lock with the process."""
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
        """Ends an orphan of this directory and removes locks whose process is gone or is somebody else."""
        deadline = time.monotonic() + timeout
        for number in (signal.SIGINT, signal.SIGQUIT):
            postmaster = self._postmaster()
            if postmaster is None:
                break
            postmaster.send_signal(number)
            psutil.wait_procs([postmaster], timeout=timeout / 2)
        while remaining := self._processes():
            # Backends of a killed postmaster still use its shared memory; they end by themselves.
            if time.monotonic() > deadline:
                pids = ", ".join(str(process.pid) for process in remaining)
                raise EmbeddedServerError(
                    f"an earlier server of this home doesn't end (processes {pids}): end it"
                )
            time.sleep(0.05)
        # No process of this directory lives, so a lock that is left is stale, whoever has its number now.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        for name in (_SOCKET, f"{_SOCKET}.lock"):
            (self.sockets / name).unlink(missing_ok=True)

    def _processes(self) -> list[psutil.Process]:
        """Live server processes of this data directory: every one of them works in it."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.name() == "postgres" and process.cwd() == str(self._data):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _postmaster(self) -> psutil.Process | None:
        """The one of them whose parent isn't one of them."""
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
        users = {self._account.platform_user, self._account.server_user}
        maps = "".join(f'valence "{user}" {SUPERUSER}\n' for user in sorted(users))
        self._account.write_file(self._base / "pg_ident.conf", maps)
        # Whoever else a role is made for proves it by a password, whose verifier is all that is stored.
        rules = (
            f"local all {SUPERUSER} peer map=valence\n"
            f"local replication {SUPERUSER} peer map=valence\n"
            "local all all scram-sha-256\n"
        )
        self._account.write_file(self._base / "pg_hba.conf", rules)
        extra = dict(self._extra)
        if self._archive is not None:
            script = self._base / "archive.sh"
            self._account.write_file(script, archive_script(self._account.ensure_log_folder(self._archive)))
            extra |= archive_settings(script)
        settings = build_configuration(
            memory=psutil.virtual_memory().total, base=self._base, sockets=self.sockets, extra=extra
        )
        self._account.write_file(self._base / "valence.conf", settings)

    def _spawn(self) -> None:
        if self.log.exists() and self.log.stat().st_size > _KEEP_LOG_BYTES:
            self.log.replace(self.log.with_name("log.1"))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [find_binaries(self._account) / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                # Of its own session, so that Ctrl-C lets the platform drain before its database ends.
                start_new_session=True,
                **self._account.subprocess_identity(),
            )

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if not self.is_running():
                raise EmbeddedServerError(
                    f"the database server ended at start: {_last_line(self.log.read_text())}"
                )
            try:
                with psycopg.connect(self.url("postgres"), connect_timeout=2):
                    return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"the database server doesn't answer after {timeout:.0f} s: {_last_line(str(error))}"
                    ) from error
            time.sleep(0.05)


def _environment() -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LD_"))}
    return {**kept, "LANG": "C"}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"
