"""The supervisor's parts: a child that restarts, and the record of a home's process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.core.home import Home
from serving.settings import Settings
from serving.standalone import supervisor
from serving.standalone.log_file import LogFile
from serving.standalone.state import PlatformState, ServeReport
from serving.standalone.supervisor import ChildProcess, Supervisor


class FakeProcess:
    """A process that lives until a test ends it."""

    status: int | None = None

    def poll(self) -> int | None:
        return self.status


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    processes: list[FakeProcess] = []

    def popen(*_arguments: Any, **_options: Any) -> FakeProcess:
        processes.append(FakeProcess())
        return processes[-1]

    monkeypatch.setattr(supervisor.subprocess, "Popen", popen)
    return processes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    return now


def test_child_comes_back_after_pauses_that_double(started: list[FakeProcess], clock: list[float]) -> None:
    child = ChildProcess(["x"], {})
    for number, pause in enumerate((0.5, 1.0, 2.0, 4.0), start=1):
        assert child.poll() is None
        assert len(started) == number
        started[-1].status = 3
        assert child.poll() == 3
        clock[0] += pause - 0.01
        child.poll()
        assert len(started) == number
        clock[0] += 0.02


def test_pause_is_bounded_and_a_steady_run_starts_over(
    started: list[FakeProcess], clock: list[float]
) -> None:
    child = ChildProcess(["x"], {})
    for _ in range(20):
        child.poll()
        started[-1].status = 1
        child.poll()
        clock[0] += 30.0
    child.poll()
    clock[0] += 61.0
    started[-1].status = 1
    assert child.poll() == 1
    before = len(started)
    clock[0] += 0.51
    child.poll()
    assert len(started) == before + 1


def test_delayed_child_waits(started: list[FakeProcess], clock: list[float]) -> None:
    child = ChildProcess(["x"], {}, delay=60)
    child.poll()
    assert not started
    clock[0] += 60
    child.poll()
    assert len(started) == 1


def test_child_that_does_not_end_is_ended() -> None:
    child = ChildProcess(["http.server", "--bind", "127.0.0.1", "0"], {})
    child.poll()
    child.stop(10)
    assert child.poll() is None
    child.stop(0)


def test_one_owner_a_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first, second = PlatformState(home), PlatformState(home)
    assert not second.is_owned()
    assert first.acquire()
    assert second.is_owned()
    assert not second.acquire()
    first.write("starting", error=None)
    assert second.read()["phase"] == "starting"
    first.release()
    assert not second.is_owned()


def test_a_killed_owner_owns_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from serving.standalone.state import PlatformState; "
        "r = PlatformState(Path(sys.argv[1])); assert r.acquire(); print('own', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"own\n"
        assert PlatformState(tmp_path).is_owned()
        owner.kill()
        owner.wait()
    heir = PlatformState(tmp_path)
    assert not heir.is_owned()
    assert heir.acquire()
    heir.release()


def test_unreadable_record_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "platform.json").write_text("{")
    assert PlatformState(tmp_path).read() == {}


def test_a_report_keeps_each_note_once_beside_the_latest_reason(tmp_path: Path) -> None:
    report = ServeReport(tmp_path)
    assert report.read() == ([], None)
    for _ in range(2):
        report.note("no HAProxy")
    report.explain("the control doesn't start: NotReady")
    assert report.read() == (["no HAProxy"], "the control doesn't start: NotReady")
    report.explain(None)
    report.note("an open cluster")
    assert report.read() == (["no HAProxy", "an open cluster"], None)
    report.clear()
    assert report.read() == ([], None)


def test_only_a_process_that_ends_by_itself_and_well_counts_as_such(
    started: list[FakeProcess], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProcess, "terminate", lambda _process: None, raising=False)
    monkeypatch.setattr(FakeProcess, "wait", lambda process, _timeout=None: process.status, raising=False)
    for status, well in ((0, True), (1, False), (-9, False)):
        child = ChildProcess(["x"], {})
        child.poll()
        started[-1].status = status
        assert child.stop(1) is well
    assert ChildProcess(["x"], {}).stop(1) is False


def test_the_log_of_the_home_is_bounded_and_one_that_a_setting_names_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "platform.log"
    log.parent.mkdir()
    for changes, kept in (({"log_mib": 0}, True), ({"log_file": log}, True), ({"log_mib": 1}, False)):
        log.write_bytes(b"x" * (2**20 + 1))
        settings = Settings.model_validate({"home": tmp_path, **changes})
        Supervisor(settings)._rotate(LogFile(log))
        assert (log.stat().st_size > 0) == kept, changes
    assert log.with_name("platform.log.1").stat().st_size == 2**20 + 1


def test_others_can_neither_lock_a_home_nor_read_its_state(tmp_path: Path) -> None:
    state = PlatformState(tmp_path)
    before = os.umask(0)
    try:
        assert state.acquire()
        state.write("starting")
    finally:
        os.umask(before)
        state.release()
    files = [Home(tmp_path).platform_lock, Home(tmp_path).platform_state]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]


def test_a_process_that_has_the_id_of_a_dead_supervisor_is_not_taken_for_it(tmp_path: Path) -> None:
    state = PlatformState(tmp_path)
    assert state.find_supervisor() is None
    state.write("serving")
    assert state.find_supervisor() == os.getpid()
    file = Home(tmp_path).platform_state
    file.write_text(json.dumps(state.read() | {"started": 1.0}))
    assert state.find_supervisor() is None
