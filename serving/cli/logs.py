"""`valence logs`: what the platform of this home has logged."""

import json
import sys
import time
from collections import deque
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.output import TIMES, AsJson, cell, escape_controls, moment

if TYPE_CHECKING:
    from serving.standalone.log_file import LogLine

_LOOK_SECONDS = 0.5
_COLOURS = {"debug": "bright_black", "warning": "yellow", "error": "red"}


class Level(StrEnum):
    """The levels of lines, the lowest first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def logs(
    level: Annotated[Level, typer.Option(help="The lowest level to show.")] = Level.DEBUG,
    since: Annotated[str | None, typer.Option(help=f"First time: {TIMES}.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines to show, the latest.")] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the log of the platform that `up` started; --since shows all lines from then on."""
    from serving.core.home import Home
    from serving.errors import Invalid
    from serving.settings import Settings
    from serving.standalone.log_file import LogFile

    settings = Settings()
    file = settings.log_file or Home(settings.home).platform_log
    begin = moment(since, "--since")
    latest: deque[LogLine] = deque(maxlen=None if begin is not None else lines)
    wait = partial(time.sleep, _LOOK_SECONDS) if follow else None
    shown = False
    try:
        with suppress(KeyboardInterrupt):
            for line in LogFile(file).read(level=level, since=begin, wait=wait):
                if line is None:
                    while latest:
                        _show(latest.popleft(), as_json=as_json)
                    shown = True
                elif shown:
                    _show(line, as_json=as_json)
                else:
                    latest.append(line)
    except FileNotFoundError:
        raise Invalid(
            f"{file} isn't there: no platform has logged here; set VALENCE_HOME to its home"
        ) from None
    for line in latest:
        _show(line, as_json=as_json)


def _show(line: "LogLine", *, as_json: bool) -> None:
    if as_json:
        written = line.text if line.at is not None else json.dumps({"text": line.text})
        print(escape_controls(written), flush=True)
        return
    if line.at is None:
        print(f"    {cell(line.text)}", flush=True)
        return
    fields = dict(line.fields)
    process, event, exception = (fields.pop(name, None) for name in ("process", "event", "exception"))
    fields.pop("pid", None)
    details = "  ".join(f"{name}={cell(value)}" for name, value in fields.items())
    level = f"{line.level:<7}"
    if sys.stdout.isatty():
        level = typer.style(level, fg=_COLOURS.get(line.level))
    at = f"{line.at.astimezone():%Y-%m-%d %H:%M:%S}"
    print(f"{at}  {level}  {cell(process):<10}  {cell(event)}  {details}".rstrip(), flush=True)
    for part in str(exception or "").splitlines():
        print(f"    {cell(part)}", flush=True)
