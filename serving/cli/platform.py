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
    """Show whether the platform runs."""
    from serving.settings import Settings
    from serving.standalone import launcher

    show_record(launcher.status(Settings()), as_json=as_json)


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
