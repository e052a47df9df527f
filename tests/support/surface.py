"""The public surface as lines: routes, commands, settings, metrics, log events.

`python -m tests.support.surface` writes them to `tests/unit/surface.txt`, which a test compares.
"""

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "unit" / "surface.txt"
# The parameters of `run_periodically` that are no fields.
_PERIODIC = {"every", "errors", "event", "after_error", "pause_first", "sleep"}
_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def surface() -> list[str]:
    """Return every line, sorted within its kind."""
    lines: list[str] = []
    for title, entries in (
        ("routes", routes()),
        ("commands", commands()),
        ("settings", settings()),
        ("metrics", metrics()),
        ("log events", log_events()),
    ):
        lines += [f"# {title}", *sorted(set(entries)), ""]
    return lines


def document() -> dict[str, Any]:
    """Return the OpenAPI document of the application over fakes."""
    from tests.support.app import fake_platform

    async def read() -> dict[str, Any]:
        async with fake_platform() as platform:
            return platform.app.openapi()

    return asyncio.run(read())


def routes() -> Iterator[str]:
    """Yield each operation with its id, its parameters and its statuses."""
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            parameters = sorted(
                f"{each['name']}{'!' if each.get('required') else ''}@{each['in']}"
                for each in operation.get("parameters", [])
            )
            statuses = ",".join(sorted(operation["responses"]))
            yield f"{method.upper()} {path} {operation['operationId']} {' '.join(parameters)} -> {statuses}"


def commands() -> Iterator[str]:
    """Yield each command with its arguments and options."""
    from serving.cli import app

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[str]:
        if hasattr(command, "commands"):
            for name, each in command.commands.items():
                yield from walk(each, (*path, name))
            return
        words = []
        for each in command.params:
            names = "/".join([*each.opts, *each.secondary_opts])
            required = "!" if each.required else ""
            default = getattr(each.default, "value", each.default)
            words.append(f"{names}{required}={default!r}")
        yield f"{' '.join(path)} {' '.join(sorted(words))}"

    yield from walk(typer.main.get_command(app), ("valence",))


def settings() -> Iterator[str]:
    """Yield each setting with its default."""
    from serving.settings import Settings

    for name, field in Settings.model_fields.items():
        yield f"{name} = {field.get_default(call_default_factory=True)!r}"


def metrics() -> Iterator[str]:
    """Yield each metric's name as the source spells it, with its labels."""
    for _path, node in _calls():
        for each in node.args[:1]:
            if isinstance(each, ast.Constant) and str(each.value).startswith("valence_"):
                labels = [
                    str(element.value)
                    for argument in node.args[1:]
                    if isinstance(argument, ast.Tuple)
                    for element in argument.elts
                    if isinstance(element, ast.Constant)
                ]
                yield f"{each.value} {' '.join(labels)}".strip()


def log_events() -> Iterator[str]:
    """Yield each log event with its level and its fields."""
    for _path, node in _calls():
        function = node.func
        keywords = {each.arg or "**": each.value for each in node.keywords}
        named = keywords.get("event")
        if isinstance(named, ast.Constant):
            # `run_periodically` logs it for a run that failed.
            fields = sorted({"error", *keywords} - _PERIODIC)
            yield f"{named.value} warning {' '.join(fields)}"
        if not (isinstance(function, ast.Attribute) and function.attr in _LEVELS and node.args):
            continue
        event = node.args[0]
        if isinstance(function.value, ast.Name) and isinstance(event, ast.Constant):
            fields = sorted(keywords)
            yield f"{event.value} {function.attr} {' '.join(fields)}".strip()


def _calls() -> Iterator[tuple[Path, ast.Call]]:
    for top in ("serving", "registry", "db"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path, node


if __name__ == "__main__":
    FILE.write_text("\n".join(surface()))
