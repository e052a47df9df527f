"""`valence up` while it waits: what it says, and what it ends with."""

import os
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import httpx
import pytest

from serving.settings import Settings
from serving.standalone import launcher
from serving.standalone.launcher import LaunchFailed
from serving.standalone.state import PlatformState, ServeReport, StartSteps


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlatformState]:
    """Yield the state of a platform that never gets ready, on a clock of one second a look."""
    clock = count()
    monkeypatch.setattr(launcher.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(launcher.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(launcher, "_health", lambda *_: None)
    state = PlatformState(tmp_path)
    assert state.acquire()
    state.write("starting the models")
    yield state
    state.release()


def test_the_reason_of_a_death_is_said_at_once_and_is_the_result_if_it_lasts(
    state: PlatformState, tmp_path: Path
) -> None:
    report = ServeReport(tmp_path)
    report.note("Ray's own proxy serves HTTP")
    report.explain("the control doesn't start: NotReady: no database")
    said: list[str] = []
    with pytest.raises(
        LaunchFailed, match=r"^the control doesn't start: NotReady: no database; it is tried again"
    ):
        launcher._wait_until_ready(Settings(home=tmp_path), state, said.append)
    words = [line.split("s  ", 1)[1] for line in said]
    assert [line for line in words if not line.startswith("still ")] == [
        "Ray's own proxy serves HTTP",
        "starting the models",
        "the control doesn't start: NotReady: no database",
    ]


def test_no_five_seconds_pass_without_a_word_on_what_goes_on(
    state: PlatformState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, said = StartSteps(tmp_path), []
    clock = count()
    monkeypatch.setattr(launcher.time, "monotonic", lambda: next(clock) / 10)
    steps.write("models", "exporting")

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 4:
            steps.write("models", "quantising")
        if len(said) == 7:
            steps.write("models", None)
            steps.write("serve", "loading the encoder")

    with pytest.raises(LaunchFailed, match="not ready"):
        launcher._wait_until_ready(Settings(home=tmp_path), state, say)
    times, words = zip(*((float(line[:4]), line.split("s  ", 1)[1]) for line in said), strict=True)
    assert words[:9] == (
        "starting the models",
        *("exporting", "still exporting", "still exporting"),
        *("quantising", "still quantising", "still quantising"),
        *("loading the encoder", "still loading the encoder"),
    )
    assert all(later - earlier <= 5 for earlier, later in pairwise(times))
    assert times[-1] > 290


def test_steps_of_an_earlier_start_are_forgotten(tmp_path: Path) -> None:
    steps = StartSteps(tmp_path)
    assert steps.read() == []
    steps.write("models", None)
    steps.write("models", "exporting")
    steps.write("serve", "loading")
    assert steps.read() == ["exporting", "loading"]
    steps.clear()
    assert steps.read() == []


def test_a_start_without_a_known_reason_has_its_whole_time(state: PlatformState, tmp_path: Path) -> None:
    with pytest.raises(LaunchFailed, match="not ready after 300 s"):
        launcher._wait_until_ready(Settings(home=tmp_path), state, lambda _text: None)


def test_a_refusal_ends_the_wait_with_its_words(state: PlatformState, tmp_path: Path) -> None:
    state.write("failed", error="another platform runs on this cluster")
    state.release()
    with pytest.raises(LaunchFailed, match=r"^another platform runs on this cluster; see "):
        launcher._wait_until_ready(Settings(home=tmp_path), state, lambda _text: None)


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (401, {"detail": "this isn't a key"}, "the key is refused: set VALENCE_API_KEY"),
        (503, {"detail": "the database can't store"}, "503 the database can't store"),
        (502, [], "502 Bad Gateway"),
    ],
)
def test_a_first_prediction_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, content: object, words: str
) -> None:
    request = httpx.Request("POST", "http://127.0.0.1:8000/v1/predict")
    answer = httpx.Response(status, json=content, request=request)
    monkeypatch.setattr(launcher.httpx, "post", lambda *_arguments, **_options: answer)
    with pytest.raises(LaunchFailed, match=f"the first prediction failed: {words}"):
        launcher._predict(Settings(home=tmp_path))


@pytest.mark.parametrize(("before", "after"), [(0o700, 0o700), (0o750, 0o750), (None, 0o755)])
def test_a_home_that_was_there_keeps_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None, after: int
) -> None:
    home = tmp_path / "home"
    if before is not None:
        home.mkdir()
        home.chmod(before)
    state = PlatformState(home)

    class Supervised:
        pid = os.getpid()

        def __init__(self, *_arguments: object, **_options: object) -> None:
            state.acquire()
            state.write("starting")

    monkeypatch.setattr(launcher.subprocess, "Popen", Supervised)
    launcher._spawn(Settings(home=home), state)
    state.release()
    assert home.stat().st_mode & 0o777 == after
    assert (home / "logs").stat().st_mode & 0o077 == 0
