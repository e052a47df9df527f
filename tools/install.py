"""Install into the environment of the Python that runs this: by uv in seconds where it can be had, else by pip.

Its arguments are those of `pip install` that uv has too, as in `python tools/install.py --editable .`; both look where
pip's own settings say. VALENCE_INSTALLER=pip leaves uv out.
"""

import ast
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_CACHE = Path(__file__).resolve().parent.parent / ".cache"
_UV = "uv==0.13.9"
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
# Seconds after which it is said anew what goes on.
_PATIENCE = 4.0
_LINES_OF_A_FAILURE = 20
_SETTING = re.compile(r"(?P<section>:env:|[\w-]+)\.(?P<name>[\w-]+)=(?P<value>.*)")
_SECTIONS = ("global", "install", ":env:")
# What pip says of each thing that it fetches, and uv of the large ones.
_FETCHED = re.compile(r"\s*(?:Collecting|Downloading|Downloaded|Building|Built|Prepared|Resolved)\b.*")
_TO_INSTALL = re.compile(r"Installing collected packages: (.*)")
# pip's settings that uv has by another name; each value holds several.
_SEVERAL = {
    "extra-index-url": "--extra-index-url",
    "find-links": "--find-links",
    "constraint": "--constraint",
    "trusted-host": "--allow-insecure-host",
}


def main(arguments: Sequence[str]) -> int:
    """Install, and return the exit status of what installed."""
    started = time.monotonic()
    print("   0 s  looking for the packages", flush=True)
    if os.environ.get("VALENCE_INSTALLER", "uv") != "pip":
        settings, uv = pip_settings(), find_uv()
        for options in uv_ways(settings) if uv is not None else ():
            command = [uv, "pip", "install", "--python", sys.executable, *options, *arguments]
            if run(command, uv_environment(settings), started) == 0:
                return 0
        print("uv can't install here: pip does", file=sys.stderr)
    command = [*_PIP, "install", "--progress-bar", "off", *arguments]
    return run(command, os.environ, started, show_failure=True)


def pip_settings() -> dict[str, str]:
    """Return pip's settings by their long names: those of the environment before its files'."""
    listed = subprocess.run([*_PIP, "config", "list"], capture_output=True, text=True, check=False)
    return parse_settings(listed.stdout)


def parse_settings(listed: str) -> dict[str, str]:
    """Return the settings in the output of `pip config list`; those of other commands than `install` are left out."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in listed.splitlines():
        setting = _SETTING.fullmatch(line)
        if setting and setting["section"] in found:
            value = str(ast.literal_eval(setting["value"]))
            found[setting["section"]][setting["name"].replace("_", "-")] = value
    return {name: value for section in _SECTIONS for name, value in found[section].items()}


def uv_ways(settings: Mapping[str, str]) -> list[list[str]]:
    """Return the options of uv to try, in this order.

    The plain index has torch for GPUs alone, several GB; uv knows where the build for this machine lies. Where pip is
    told of other places than one index, the right build lies there.
    """
    options = ["--index-strategy", "unsafe-best-match"]
    if index := settings.get("index-url"):
        options += ["--default-index", index]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    for name, option in _SEVERAL.items():
        for value in settings.get(name, "").split():
            options += [option, value]
    plain = not any(name in settings for name in ("no-index", "extra-index-url", "find-links"))
    return [[*options, "--torch-backend", "auto"], options] if plain else [options]


def uv_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return uv's environment, with pip's certificates, proxy and patience."""
    own = {"UV_NO_PROGRESS": "1", "UV_NO_CONFIG": "1"}
    for name, variables in {
        "cert": ("SSL_CERT_FILE",),
        "proxy": ("HTTP_PROXY", "HTTPS_PROXY"),
        "timeout": ("UV_HTTP_TIMEOUT",),
        "default-timeout": ("UV_HTTP_TIMEOUT",),
    }.items():
        if name in settings:
            own |= dict.fromkeys(variables, settings[name])
    return own | os.environ


def find_uv() -> str | None:
    """Return the path of uv: the machine's own, or one that pip puts into .cache; None if it can't be had."""
    if found := shutil.which("uv"):
        return found
    folder = _CACHE / "uv"
    own = folder / "bin" / "uv"
    if not own.exists():
        _CACHE.mkdir(exist_ok=True)
        # Two of these may run at once: each gets its own, and the first one stays.
        with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
            command = [
                *_PIP,
                "install",
                "--quiet",
                "--only-binary",
                ":all:",
                "--target",
                f"{scratch}/uv",
                _UV,
            ]
            subprocess.run(command, capture_output=True, check=False)
            with suppress(OSError):
                (Path(scratch) / "uv").rename(folder)
    return str(own) if own.exists() else None


def run(
    command: Sequence[str], environment: Mapping[str, str], started: float, *, show_failure: bool = False
) -> int:
    """Run an installer to its end, say every few seconds what it does, and return its exit status.

    If it fails, its last lines are printed; with `show_failure` all that it said on errors.
    """
    told: list[str] = []
    progress, next_word = Progress(), time.monotonic() + _PATIENCE
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    with subprocess.Popen(
        command,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=max(0.0, next_word - time.monotonic()))
            except queue.Empty:
                print(f"{time.monotonic() - started:4.0f} s  {progress.describe()}", flush=True)
                next_word = time.monotonic() + _PATIENCE
                continue
            if line is None:
                break
            told.append(line)
            progress.add(line)
    if process.returncode:
        shown = told if show_failure else told[-3:]
        print("".join(shown[-_LINES_OF_A_FAILURE:]), end="", file=sys.stderr)
    else:
        print(f"{time.monotonic() - started:4.0f} s  installed", flush=True)
    return process.returncode


def _read(output: Iterable[str], lines: "queue.SimpleQueue[str | None]") -> None:
    for line in output:
        lines.put(line)
    lines.put(None)


class Progress:
    """The doings of an installer, by its lines and by what lies in the environment."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(next(path for path in sys.path if path.endswith("site-packages")))
        self._fetched = 0
        self._last = ""
        self._to_install = 0
        self._there = 0

    def add(self, line: str) -> None:
        """Take note of a line."""
        if together := _TO_INSTALL.match(line.strip()):
            self._to_install, self._there = len(together[1].split(", ")), self._count()
        elif _FETCHED.fullmatch(line.strip()):
            self._fetched += 1
            self._last = line.strip()

    def describe(self) -> str:
        """Return what goes on, in one line."""
        if self._to_install:
            return f"installing: {self._count() - self._there} of {self._to_install} packages"
        if self._fetched:
            return f"{self._last[:100]} ({self._fetched})"
        return "looking for the packages"

    def _count(self) -> int:
        return sum(1 for _ in self._folder.glob("*.dist-info"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
