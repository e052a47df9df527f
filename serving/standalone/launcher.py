"""`valence up`, `down` and `status` on one machine: a supervisor in the background, or this process as one.

Owns the messages while the platform starts and stops. Ends only what `up` started.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from serving.core.home import Home
from serving.settings import OF_THE_COMMAND_LINE, Settings
from serving.standalone.state import PlatformState, ServeReport, StartSteps

Say = Callable[[str], None]

_UP_SECONDS = 300.0
# After which what goes on is said again.
_PATIENCE_SECONDS = 4.0
# A cause that lasts longer than a database needs to start is told as the result.
_REASON_SECONDS = 30.0
_DOWN_SECONDS = 90.0
_EXAMPLE = "The battery lasts all day and the screen is a joy."


class LaunchFailed(Exception):
    """The platform can't be started or stopped; the message says why and what to do."""


def up(settings: Settings, *, foreground: bool = False, say: Say = print) -> dict[str, Any]:
    """Start the platform unless it runs, wait until it answers, and make one prediction.

    Returns:
        The URLs of the platform, its console and its documentation, the path of the admin key, whether the platform
        ran before, and the prediction.

    Raises:
        LaunchFailed: the port is taken, or a part does not start.
    """
    settings = settings.model_copy(update={"home": settings.home.absolute()})
    state = PlatformState(settings.home)
    if Home(settings.home).restore_mark.exists():
        raise LaunchFailed(
            f"a restore into {settings.home} was interrupted: remove the folder and restore again"
        )
    was_up = state.is_owned()
    if not was_up:
        # A Serve that runs on a named cluster has the port already.
        if settings.ray_address is None:
            require_free_port(settings.host, settings.port, otherwise="set VALENCE_PORT")
        if foreground:
            _run_in_foreground(settings)
        _spawn(settings, state)
    seconds = _wait_until_ready(settings, state, say)
    say(f"{'already up' if was_up else f'ready after {seconds:.0f} s'} at {settings.base_url}")
    return {
        "url": settings.base_url,
        "console": f"{settings.base_url}/console",
        "docs": f"{settings.base_url}/docs",
        "admin_key": str(Home(settings.home).admin_key),
        "was_up": was_up,
        "prediction": _predict(settings),
    }


def down(settings: Settings, *, say: Say = print) -> bool:
    """Stop the platform of this home, and keep its data. Return False if it doesn't run.

    Raises:
        LaunchFailed: it does not end in time.
    """
    home = settings.home.absolute()
    state = PlatformState(home)
    pid = state.find_supervisor()
    if not state.is_owned() or pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_SECONDS
    while state.is_owned():
        if time.monotonic() > deadline:
            raise LaunchFailed(
                f"process {pid} does not end: run `valence down` again, or see {Home(home).logs}"
            )
        time.sleep(0.1)
    say("down; the data stays in " + str(home))
    return True


def status(settings: Settings) -> dict[str, Any]:
    """Return whether the platform of this home runs and is ready, its phase and its addresses."""
    home = settings.home.absolute()
    state = PlatformState(home)
    is_up = state.is_owned()
    recorded = state.read() if is_up else {}
    with httpx.Client(timeout=5) as client:
        health = _health(settings, client) if is_up else None
    return {
        "up": is_up,
        "ready": bool(health and health.status_code == httpx.codes.OK),
        "phase": "serving" if health is not None else recorded.get("phase", "down"),
        "pid": recorded.get("pid"),
        "url": settings.base_url,
        "home": str(home),
        "logs": str(Home(home).logs),
    }


def require_free_port(host: str, port: int, *, otherwise: str) -> None:
    """Raise LaunchFailed if the port is taken; `otherwise` says how to choose another one."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchFailed(
                f"port {port} is taken ({error.strerror}): stop the program that uses it, or {otherwise}"
            ) from error


def _run_in_foreground(settings: Settings) -> None:
    os.environ["VALENCE_HOME"] = str(settings.home)
    from serving.standalone.supervisor import Supervisor

    sys.exit(Supervisor(settings).run())


def _spawn(settings: Settings, state: PlatformState) -> None:
    log_file = Home(settings.home).platform_log
    if not settings.home.exists():
        settings.home.mkdir(parents=True)
        # The database's user passes through it, whatever the umask; a folder that was there keeps its mode.
        settings.home.chmod(0o755)
    log_file.parent.mkdir(mode=0o700, exist_ok=True)
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serving.standalone.supervisor"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in OF_THE_COMMAND_LINE}
            | {"VALENCE_HOME": str(settings.home), "VALENCE_PORT": str(settings.port)},
        )
    while not state.is_owned() or state.read().get("pid") != process.pid:
        if process.poll() is not None:
            _fail(settings, state)
        time.sleep(0.05)


def _wait_until_ready(settings: Settings, state: PlatformState, say: Say) -> float:
    started = last_said = time.monotonic()
    said: set[str] = set()
    explained: float | None = None

    def say_now(text: str) -> None:
        nonlocal last_said
        last_said = time.monotonic()
        say(f"{last_said - started:4.0f} s  {text}")

    def say_once(text: str) -> None:
        if text and text not in said:
            said.add(text)
            say_now(text)

    with httpx.Client(timeout=5) as client:
        while (health := _health(settings, client)) is None or health.status_code != httpx.codes.OK:
            if not state.is_owned():
                _fail(settings, state)
            notes, reason = ServeReport(settings.home).read()
            phase, steps = str(state.read().get("phase", "")), StartSteps(settings.home).read()
            for text in (*notes, phase, *steps, reason or ""):
                say_once(text)
            if time.monotonic() - last_said > _PATIENCE_SECONDS:
                say_now(f"still {steps[-1] if steps else phase}")
            now = time.monotonic()
            explained = (explained or now) if reason else None
            if explained is not None and now - explained > _REASON_SECONDS:
                raise LaunchFailed(
                    f"{reason}; it is tried again until `valence down`: see {Home(settings.home).logs}"
                )
            if now - started > _UP_SECONDS:
                raise LaunchFailed(f"not ready after {_UP_SECONDS:.0f} s: see {Home(settings.home).logs}")
            time.sleep(0.2)
        for note in ServeReport(settings.home).read()[0]:
            say_once(note)
    return time.monotonic() - started


def _fail(settings: Settings, state: PlatformState) -> None:
    error = state.read().get("error") or "the supervisor ended"
    raise LaunchFailed(f"{error}; see {Home(settings.home).platform_log}")


def _health(settings: Settings, client: httpx.Client) -> httpx.Response | None:
    try:
        return client.get(f"{settings.base_url}/health/ready")
    except httpx.HTTPError:
        return None


def _predict(settings: Settings) -> dict[str, Any]:
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    path = Home(settings.home).admin_key
    if not key and path.exists():
        key = path.read_text().strip()
    try:
        response = httpx.post(
            f"{settings.base_url}/v1/predict",
            json={"text": _EXAMPLE},
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
        )
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise LaunchFailed(
            f"the platform is up, but the first prediction failed: {_explain(error.response)}"
        ) from error
    except httpx.HTTPError as error:
        raise LaunchFailed(
            f"the platform is up, but the first prediction failed: {error}; see {Home(settings.home).logs}"
        ) from error
    prediction: dict[str, Any] = response.json()
    return {"text": _EXAMPLE} | prediction


def _explain(response: httpx.Response) -> str:
    """Return the words of a refusal, and what to do about it."""
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return (
            "the key is refused: set VALENCE_API_KEY to a valid one, or unset it to use the home's admin.key"
        )
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.reason_phrase
    return f"{response.status_code} {detail}"
