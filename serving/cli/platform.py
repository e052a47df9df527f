"""The platform's commands: up, down, status, settings."""

import re
import sys
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

    found = launcher.up(Settings(), foreground=foreground, say=partial(print, file=sys.stderr))
    prediction = found["prediction"]
    shown = f"{prediction['text']!r} is {prediction['sentiment']} ({prediction['confidence']:.2f})"
    show_record(found if as_json else found | {"prediction": shown}, as_json=as_json)


def down() -> None:
    """Stop what `up` started, and only that; data stays."""
    from serving.settings import Settings
    from serving.standalone import launcher

    if not launcher.down(Settings()):
        print("nothing runs here")


def status(as_json: AsJson = False) -> None:
    """Say what runs."""
    from serving.settings import Settings
    from serving.standalone import launcher

    show_record(launcher.status(Settings()), as_json=as_json)


def settings(as_json: AsJson = False) -> None:
    """List every setting: its variable, present value, default and meaning."""
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
    """A value to look at: a secret is stars, and so is what a URL says of its user."""
    return None if value is None else _USERINFO.sub("***@", cell(value))
