"""The platform's commands: up, down, status, settings."""

import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Any

import typer

from serving.cli.output import AsJson, cell, show_record, show_table, variable

# The first setting of each topic, in the order of the settings.
_TOPICS = {
    "home": "platform",
    "database_url": "database",
    "mlflow_tracking_uri": "MLflow",
    "ray_address": "Ray",
    "installation_key": "keys and access",
    "token_keys": "keys and access",
    "privacy": "privacy",
    "model": "models",
    "gate_accuracy_difference": "gates",
    "evaluation_texts": "evaluations",
    "reembedding_share": "search",
    "encoder_cpus": "encoder replicas",
    "ingress_cpus": "ingress replicas",
    "batch_texts": "queues and batches",
    "retention_days": "data and backups",
    "haproxy": "HTTP",
    "ray_memory_mib": "memory",
    "log_level": "logs and traces",
    "url": "command line",
}
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

    settings = Settings()
    if not launcher.down(settings):
        print(f"no platform runs in {settings.home.absolute()}; VALENCE_HOME names another home")


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


def settings(
    term: Annotated[
        str | None, typer.Argument(help="Show those with this in their topic, name or meaning.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the settings by topic, with variable, present value, default and meaning."""
    from serving.errors import NotFound
    from serving.settings import Settings

    present = Settings()
    topics = _topics(Settings.model_fields)
    rows: list[dict[str, Any]] = [
        {
            "topic": topics[name],
            "name": variable(name),
            "value": _masked(getattr(present, name)),
            "default": _masked(field.default),
            "meaning": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]
    wanted = (term or "").casefold()
    rows = [
        row
        for row in rows
        if any(wanted in row[column].casefold() for column in ("topic", "name", "meaning"))
    ]
    if not rows:
        raise NotFound(
            f"no setting has {term!r} in its topic, name or meaning: `valence settings` lists them all"
        )
    shown = [
        {**row, "topic": "" if position else topic}
        for topic, group in groupby(rows, itemgetter("topic"))
        for position, row in enumerate(group)
    ]
    columns = ("topic", "name", "value", "default", "meaning")
    show_table(shown, columns, answer={"items": rows}, as_json=as_json)


def _topics(fields: Iterable[str]) -> dict[str, str]:
    """Return the topic of each setting, in their order: that of the last field that begins one."""
    topics: dict[str, str] = {}
    topic = ""
    for name in fields:
        topic = _TOPICS.get(name, topic)
        topics[name] = topic
    return topics


def _masked(value: object) -> str | None:
    """Return a value to print, with stars for a secret and for the user in a URL."""
    return None if value is None else _USERINFO.sub("***@", cell(value))
