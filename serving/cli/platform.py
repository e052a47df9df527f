"""The platform's commands: up, down, status, settings."""

import re
import sys
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer

from serving.cli.output import AsJson, cell, show_record, show_table, variable

_USERINFO = re.compile(r"(?<=://)[^/@]*@")


def up(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in the foreground, for service managers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the platform, wait until it answers, and make one prediction."""
    from serving.settings import Settings
    from serving.standalone import launcher

    result = launcher.up(Settings(), foreground=foreground, say=partial(print, file=sys.stderr))
    prediction = result["prediction"]
    shown = f"{prediction['text']!r} is {prediction['sentiment']} ({prediction['confidence']:.2f})"
    show_record(result if as_json else result | {"prediction": shown}, as_json=as_json)


def down() -> None:
    """Stop the platform that `up` started; its data stays."""
    from serving.settings import Settings
    from serving.standalone import launcher

    if not launcher.down(Settings()):
        print("no platform runs here")


def status(as_json: AsJson = False) -> None:
    """Show whether the platform runs, what it holds and does, the room on its disk and the last backup."""
    from serving.settings import Settings
    from serving.standalone.status import describe

    answer = describe(Settings())
    show_record(answer if as_json else _status_lines(answer), as_json=as_json)


def _status_lines(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a status that are known, as people read them."""
    lines = {name: value for name, value in answer.items() if value is not None}
    lines["ready"] = answer["ready"]
    if (texts := answer["texts"]) is not None:
        lines["texts"] = f"{texts:,}"
        lines["experiments"] = [_experiment(each) for each in answer["experiments"]] or "none runs"
    if (disk := answer["disk"]) is not None:
        lines["disk"] = f"{_size(disk['free_bytes'])} free of {_size(disk['total_bytes'])}"
    backup = answer["last_backup"]
    lines["last_backup"] = (
        "none was made from this home: `valence db backup`"
        if backup is None
        else f"{backup['at']}  {backup['backup']}  {_size(backup['bytes'])}"
    )
    return lines


def _experiment(experiment: Mapping[str, Any]) -> str:
    kind = "in the shadow of" if experiment["shadow"] else "of"
    return f"version {experiment['challenger']} on {experiment['share']:.1%} {kind} {experiment['model']}"


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def settings(as_json: AsJson = False) -> None:
    """List every setting with its variable, present value, default and meaning."""
    from serving.settings import Settings

    present = Settings()
    rows: list[dict[str, Any]] = [
        {
            "name": variable(name),
            "value": _masked(getattr(present, name)),
            "default": _masked(field.default),
            "meaning": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]
    show_table(rows, ("name", "value", "default", "meaning"), answer={"items": rows}, as_json=as_json)


def _masked(value: object) -> str | None:
    """Return a value to print, with stars for a secret and for the user in a URL."""
    return None if value is None else _USERINFO.sub("***@", cell(value))
