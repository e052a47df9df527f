"""The embedded server: who can connect, and which failures it survives."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from db.connection.databases import ensure_sibling
from db.core.environment import forget_libpq_variables
from db.core.urls import conninfo
from db.embedded.server import EmbeddedPostgres
from db.errors import AlreadyOwned, EmbeddedServerError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    """Return a home whose server has never run, to be copied: setting one up takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="valence-embedded-"))
    folder.chmod(0o755)
    EmbeddedPostgres(folder).initialise()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home(initialised: Path, empty: Path) -> Path:
    """Return a home that is set up."""
    subprocess.run(["cp", "-a", initialised / "postgres", empty / "postgres"], check=True)
    return empty


@pytest.fixture
def empty() -> Iterator[Path]:
    """Return a home that other users can enter, like a service's."""
    folder = Path(tempfile.mkdtemp(prefix="valence-embedded-"))
    folder.chmod(0o755)
    yield folder
    far = (folder / "postgres").resolve()
    if far.parent != folder:
        shutil.rmtree(far, ignore_errors=True)
    shutil.rmtree(folder)


def processes(home: Path) -> list[psutil.Process]:
    data = str((home / "postgres").resolve() / "data")
    results = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and process.cwd() == data:
                results.append(process)
        except psutil.Error:
            continue
    return results


def kill_everything(home: Path) -> None:
    """Kill all processes at once, like a power cut."""
    victims = processes(home)
    for victim in victims:
        # A child notices that its parent has died, and ends.
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    psutil.wait_procs(victims, timeout=10)
    for _ in range(100):
        if not processes(home):
            return
        time.sleep(0.05)


def store(server: EmbeddedPostgres, number: int) -> None:
    with psycopg.connect(server.url("postgres")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (number,))


def stored_numbers(server: EmbeddedPostgres) -> list[int]:
    with psycopg.connect(server.url("postgres")) as connection:
        return [row[0] for row in connection.execute("SELECT number FROM kept ORDER BY 1")]


def test_a_server_starts_stops_and_keeps_its_data(home: Path) -> None:
    server = EmbeddedPostgres(home)
    for number in range(2):
        server.start()
        assert server.is_running()
        store(server, number)
        server.stop()
        assert not server.is_running()
    server.start()
    try:
        assert stored_numbers(server) == [0, 1]
        with psycopg.connect(server.url("postgres")) as connection:
            settings = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
        assert settings["listen_addresses"] == ""
        assert settings["synchronous_commit"] == settings["fsync"] == settings["data_checksums"] == "on"
        assert settings["jit"] == "off"
        assert server.create_database('odd "name') == server.create_database('odd "name')
    finally:
        server.stop()


def test_the_server_inherits_no_secret_and_no_variable_diverts_its_clients(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverting = {
        "PGPORT": "5433",
        "PGHOSTADDR": "127.0.0.1",
        "PGSERVICE": "nothing",
        "PGCLIENTENCODING": "LATIN1",
    }
    for name, value in {"VALENCE_TEXT_KEYS": "a:secret", **diverting}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    forget_libpq_variables(os.environ)
    server = EmbeddedPostgres(home)
    server.start()
    try:
        inherited = psutil.Process(server.process.pid).environ()
        assert not [name for name in inherited if name.startswith(("VALENCE_", "DATABASE_", "PG", "RAY_"))]
        with psycopg.connect(server.create_database("valence")) as connection:
            assert connection.execute("SELECT '✓'").fetchone() == ("✓",)
    finally:
        server.stop()


@as_root
def test_another_user_can_not_connect_and_the_platform_s_user_can(home: Path) -> None:
    server = EmbeddedPostgres(home)
    server.start()
    try:
        socket = (home / "postgres" / "socket").resolve()
        assert socket.stat().st_mode & 0o777 == 0o700
        assert (home / "postgres" / "data").stat().st_mode & 0o777 == 0o700
        nobody = pwd.getpwnam("nobody")
        probe = (
            "import socket, sys\ns = socket.socket(socket.AF_UNIX)\n"
            "try: s.connect(sys.argv[1])\nexcept PermissionError: sys.exit(42)"
        )
        completed = subprocess.run(
            [
                shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable,
                "-c",
                probe,
                socket / ".s.PGSQL.5432",
            ],
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            cwd="/",
            check=False,
        )
        assert completed.returncode == 42
        # Even with an open folder, peer authentication refuses.
        for folder in (socket, socket / ".s.PGSQL.5432"):
            folder.chmod(0o777)
        psql = _psql()
        refused = subprocess.run(
            [psql, "-h", socket, "-U", "valence", "postgres", "-c", "SELECT 1"],
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode != 0
        assert "eer authentication failed" in refused.stderr
        with psycopg.connect(server.url("postgres")) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("valence",)
        assert server.process.pid
        assert psutil.Process(server.process.pid).username() == "valence-db"
    finally:
        server.stop()


def _psql() -> Path:
    from db.embedded.os_users import ServerUsers, find_binaries

    return find_binaries(ServerUsers.current()) / "psql"


def test_nothing_acknowledged_is_lost_when_everything_is_killed(home: Path) -> None:
    for number in range(3):
        server = EmbeddedPostgres(home)
        server.start()
        store(server, number)
        kill_everything(home)
        assert not server.is_running()
        server.stop()
    server = EmbeddedPostgres(home)
    server.start()
    try:
        assert stored_numbers(server) == [0, 1, 2]
    finally:
        server.stop()


@pytest.mark.parametrize("content", ["", "garbage\n", "reused", "-1\n"])
def test_a_stale_lock_whatever_it_names_is_recovered_from(home: Path, content: str) -> None:
    server = EmbeddedPostgres(home)
    server.start()
    store(server, 1)
    kill_everything(home)
    server.stop()
    data, sockets = home / "postgres" / "data", home / "postgres" / "socket"
    lines = (data / "postmaster.pid").read_text().splitlines()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        text = content if content != "reused" else "\n".join([str(stranger.pid), *lines[1:]])
        (data / "postmaster.pid").write_text(text)
        (sockets / ".s.PGSQL.5432.lock").write_text(text)
        (sockets / ".s.PGSQL.5432").touch()
        again = EmbeddedPostgres(home)
        again.start()
        assert stored_numbers(again) == [1]
        again.stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_orphan_is_ended_cleanly_and_replaced(home: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from db.embedded.server import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1])); server.start()\n"
        "print(server.process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, home], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    orphan = psutil.Process(int(done.stdout))
    assert orphan.is_running()
    server = EmbeddedPostgres(home)
    store(server, 7)
    server.start()
    try:
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert stored_numbers(server) == [7]
        assert "shut down" in server.log.read_text()
    finally:
        server.stop()


def test_backends_of_a_killed_server_are_waited_for(home: Path) -> None:
    server = EmbeddedPostgres(home)
    server.start()
    store(server, 1)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    server.start()
    try:
        assert stored_numbers(server) == [1]
    finally:
        server.stop()


def test_a_home_has_one_owner_at_a_time(home: Path) -> None:
    server, second = EmbeddedPostgres(home), EmbeddedPostgres(home)
    server.start()
    try:
        with pytest.raises(AlreadyOwned, match="valence down"):
            second.start()
        assert server.is_running()
        assert server.url() == second.url()
    finally:
        server.stop()
    second.start()
    second.stop()


def test_set_up_that_was_cut_off_begins_anew(empty: Path) -> None:
    half = empty / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    server = EmbeddedPostgres(empty)
    server.start()
    server.stop()
    assert not half.exists()


def test_a_home_with_a_long_path_has_its_socket_elsewhere(empty: Path) -> None:
    deep = empty / ("long" * 20) / "odd 'name'"
    deep.mkdir(parents=True)
    server = EmbeddedPostgres(deep)
    server.start()
    try:
        store(server, 1)
        assert stored_numbers(server) == [1]
    finally:
        server.stop()
        shutil.rmtree(server.sockets)


@pytest.mark.parametrize("name", ["a, b", 'quo"te', "two words", "Überprüfung ✓", "per%cent"])
def test_a_home_may_have_any_name(empty: Path, name: str) -> None:
    odd = empty / name
    server = EmbeddedPostgres(odd)
    server.start()
    try:
        store(server, 1)
        sibling = ensure_sibling(server.create_database("valence"), "_mlflow")
        with psycopg.connect(conninfo(sibling)) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("valence_mlflow",)
    finally:
        server.stop()
        shutil.rmtree(server.sockets)


@as_root
def test_a_private_home_of_root_keeps_its_mode_and_holds_a_link(empty: Path) -> None:
    empty.chmod(0o700)
    inner = empty / "valence"
    server = EmbeddedPostgres(inner)
    server.start()
    try:
        assert (inner / "postgres").is_symlink()
        assert empty.stat().st_mode & 0o777 == 0o700
        store(server, 1)
        assert stored_numbers(server) == [1]
    finally:
        server.stop()
        shutil.rmtree((inner / "postgres").resolve())


def test_a_server_that_can_not_start_says_why(home: Path) -> None:
    server = EmbeddedPostgres(home)
    server.initialise()
    with (home / "postgres" / "data" / "postgresql.conf").open("a") as file:
        file.write("shared_buffers = 'nonsense'\n")
    with pytest.raises(EmbeddedServerError, match=r"shared_buffers|configuration"):
        server.start()
    assert not server.is_running()


def test_the_log_holds_no_values(home: Path) -> None:
    server = EmbeddedPostgres(home)
    server.start()
    try:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute("CREATE TABLE t (x text PRIMARY KEY, n int CHECK (n > 0))")
            connection.execute("INSERT INTO t VALUES ('a secret', 1)")
            for statement, values in (
                ("INSERT INTO t VALUES (%s, 1)", ("a secret",)),
                ("INSERT INTO t VALUES (%s, 0)", ("a secret",)),
                ("INSERT INTO t VALUES (%s, 'a secret')", ("a secret",)),
            ):
                with pytest.raises(psycopg.Error):
                    connection.execute(statement, values)
    finally:
        server.stop()
    assert "23505" in server.log.read_text()
    assert "DETAIL" not in server.log.read_text()
