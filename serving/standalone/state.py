"""The state of a home's platform: two files and a lock. Starts and ends nothing."""

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

import psutil

from serving.core.home import Home

# The exit status of a process of Serve that would be refused again.
REFUSED: Final = 3
_PRIVATE: Final = 0o600


class PlatformState:
    """The file that a home's supervisor writes, and the lock that it holds while it lives."""

    def __init__(self, home: Path) -> None:
        self._file = Home(home).platform_state
        self._lock_file = Home(home).platform_lock
        self._lock: IO[str] | None = None

    def acquire(self) -> bool:
        """Become this home's supervisor, or return False if another one lives; its death frees the lock."""
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        # Whoever may open it may lock it.
        lock = _open_private(self._lock_file)
        os.fchmod(lock.fileno(), _PRIVATE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def release(self) -> None:
        """Stop being the supervisor."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_owned(self) -> bool:
        """Return whether a supervisor lives."""
        if not self._lock_file.exists():
            return False
        with _open_private(self._lock_file) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def write(self, phase: str, *, error: str | None = None) -> None:
        """Write the phase of the supervisor."""
        draft = self._file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        state = {"pid": os.getpid(), "started": _started(os.getpid()), "phase": phase, "error": error}
        with _open_private(draft) as file:
            file.write(json.dumps(state))
        draft.replace(self._file)

    def find_supervisor(self) -> int | None:
        """Return the id of the process that wrote the state; None if it has ended, and another may have its id."""
        state = self.read()
        pid = state.get("pid")
        if not isinstance(pid, int) or _started(pid) != state.get("started"):
            return None
        return pid

    def read(self) -> dict[str, object]:
        """Return what was written last; empty if there is nothing to read."""
        try:
            state: dict[str, object] = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return state


def _open_private(path: Path) -> IO[str]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _PRIVATE), "a")


def _started(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


class ServeReport:
    """The word of the process of Serve to those who wait: notes, and why the platform isn't ready."""

    def __init__(self, home: Path) -> None:
        self._file = Home(home).serve_report

    def clear(self) -> None:
        """Forget what an earlier process said."""
        self._file.unlink(missing_ok=True)

    def note(self, text: str) -> None:
        """Add a note; one that is there already stays once."""
        notes, reason = self.read()
        if text not in notes:
            self._write([*notes, text], reason)

    def explain(self, reason: str | None) -> None:
        """Say why the platform isn't ready; None: nothing is known."""
        notes, said = self.read()
        if reason != said:
            self._write(notes, reason)

    def read(self) -> tuple[list[str], str | None]:
        """Return the notes and the reason."""
        try:
            written = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return [], None
        return written["notes"], written["reason"]

    def _write(self, notes: list[str], reason: str | None) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps({"notes": notes, "reason": reason}))
        draft.replace(self._file)


class StartSteps:
    """The steps of the supervisor's children while the platform starts, each child's in a file of its own."""

    def __init__(self, home: Path) -> None:
        self._folder = Home(home).start_steps

    def clear(self) -> None:
        """Forget what earlier processes did."""
        for file in self._folder.glob("*"):
            file.unlink(missing_ok=True)

    def write(self, process: str, step: str | None) -> None:
        """Say what a process does; None: nothing any more. What can't be written is left out."""
        file = self._folder / process
        with suppress(OSError):
            if step is None:
                file.unlink(missing_ok=True)
                return
            self._folder.mkdir(exist_ok=True)
            draft = file.with_suffix(".new")
            draft.write_text(step)
            draft.replace(file)

    def read(self) -> list[str]:
        """Return what the processes do, by their names."""
        steps = []
        for file in sorted(self._folder.glob("*")):
            if not file.suffix:
                with suppress(OSError):
                    steps.append(file.read_text())
        return steps
