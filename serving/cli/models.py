"""`valence models`: models and their versions, registration, evaluation and promotion."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from serving.cli.output import (
    TIMES,
    Api,
    AsJson,
    Yes,
    calls_api,
    confirm,
    key_names,
    local_time,
    show_json,
    show_record,
    show_table,
)
from serving.cli.spaces import import_space

if TYPE_CHECKING:
    from registry.store.records import VersionRecord
    from serving.cli.client import Client

Into: TypeAlias = Annotated[str, typer.Option("--model", help="The model to add the version to.")]

app = typer.Typer(no_args_is_help=True, help="Models and their versions.")

Version: TypeAlias = Annotated[str, typer.Argument(metavar="VERSION", help="The version's number.")]
Model: TypeAlias = Annotated[str, typer.Option(help="The model.")]
Description: TypeAlias = Annotated[
    str | None, typer.Option(help="What the version is, in a sentence or two.")
]
Languages: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--language", help="A language that the version knows, such as en; may be repeated."),
]
Reason: TypeAlias = Annotated[str | None, typer.Option(help="Reason, stored in the history.")]

_POLL_SECONDS = 1.0
_REIGN = ("version", "from", "to", "act", "gates", "by", "reason")


@app.command("list")
@calls_api
def list_(api: Api) -> None:
    """List the models."""
    answer = api.client.get("/v1/models")
    show_table(answer["items"], ("name", "languages"), answer=answer, as_json=api.as_json)


@app.command()
@calls_api
def show(
    api: Api,
    name: Annotated[str, typer.Argument()] = "sentiment",
    number: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="Show one version alone.")] = None,
    version: Annotated[
        str | None, typer.Option(help="The same as VERSION, with the present verdict of the gates.")
    ] = None,
) -> None:
    """Show the versions of a model, or one of them; the JSON has all metrics."""
    version = version or number
    if version is not None:
        _show_version(api.client.get(f"/v1/models/{name}/versions/{version}"), as_json=api.as_json)
        return
    answer = api.client.get(f"/v1/models/{name}")
    rows = [
        {
            **version,
            "state": _state(version),
            "encoder": version["encoder"] and version["encoder"][:12],
            "accuracy": version["metrics"].get("rated.accuracy"),
            "macro-F1": version["metrics"].get("rated.macro_f1"),
        }
        for version in answer["versions"]
    ]
    columns = ("version", "name", "aliases", "kind", "state", "encoder", "accuracy", "macro-F1")
    show_table(rows, columns, answer=answer, as_json=api.as_json)


@app.command()
@calls_api
def evaluate(
    api: Api,
    version: Version,
    model: Model = "sentiment",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the report, and show it.")] = False,
) -> None:
    """Measure a version on the held-out set and on stored texts, at background priority."""
    evaluation = api.client.post(f"/v1/models/{model}/versions/{version}/evaluate")
    if wait:
        answer = _wait_for_evaluation(api.client, model, version, evaluation["id"])
        _show_version(answer, as_json=api.as_json)
        return
    record = {name: evaluation[name] for name in ("id", "version", "state", "created_at")}
    show_record(evaluation if api.as_json else record, as_json=api.as_json)


@app.command()
@calls_api
def promote(
    api: Api,
    version: Version,
    model: Model = "sentiment",
    force: Annotated[bool, typer.Option("--force", help="Ignore the gates; needs a reason.")] = False,
    reason: Reason = None,
    yes: Yes = False,
) -> None:
    """Make a version champion, if its stored report passes the gates. On a terminal, it asks before."""
    if force and not (reason or "").strip():
        raise typer.BadParameter(
            "passing over the gates needs a --reason, which is stored", param_hint="--force"
        )
    confirm(lambda: _promotion_question(api.client, model, version), yes=yes)
    answer = api.client.post(
        f"/v1/models/{model}/versions/{version}/promote", force=force or None, reason=reason
    )
    _show_outcome(answer, as_json=api.as_json)


@app.command()
@calls_api
def rollback(api: Api, model: Model = "sentiment", reason: Reason = None, yes: Yes = False) -> None:
    """Make the previous champion answer again. On a terminal, it asks before."""
    confirm(lambda: _rollback_question(api.client, model), yes=yes)
    answer = api.client.post(f"/v1/models/{model}/rollback", reason=reason)
    _show_outcome(answer, as_json=api.as_json)


@app.command()
@calls_api
def history(
    api: Api, model: Model = "sentiment", limit: Annotated[int, typer.Option(min=1, max=200)] = 50
) -> None:
    """Show which versions were champion and when, by whom and why; the JSON has the evidence."""
    answer = api.client.get(f"/v1/models/{model}/history", limit=limit)
    names = str if api.as_json else key_names(api.client)
    rows = [_reign(item, names) for item in answer["items"]]
    show_table(rows, _REIGN, answer=answer, as_json=api.as_json)


@app.command()
@calls_api
def champion(
    api: Api,
    model: Model = "sentiment",
    at: Annotated[str | None, typer.Option(help=f"The moment: {TIMES}; default: now.")] = None,
) -> None:
    """Show the champion of a moment: since when, by whom and why; the evidence is in the JSON."""
    answer = api.client.get(f"/v1/models/{model}/champion", at=at)
    record = answer if api.as_json else _reign(answer, key_names(api.client))
    show_record(record, as_json=api.as_json)


def _reign(item: Mapping[str, Any], name_key: Callable[[str | None], str | None]) -> dict[str, Any]:
    """Return one version's time as champion, as people read it."""
    shown = {name: item[name] for name in _REIGN if name != "gates"}
    shown |= {"from": local_time(item["from"]), "to": local_time(item["to"]), "by": name_key(item["by"])}
    gates = "forced" if item["forced"] else "gated" if item["gated"] else None
    return {name: gates if name == "gates" else shown[name] for name in _REIGN}


def _promotion_question(client: "Client", model: str, version: str) -> str:
    champion = _champion(client, model)
    change = f"champion {champion} → {version}" if champion is not None else f"first champion: {version}"
    return (
        f"Promote ({change})? Version {version} then answers all requests to {model!r} that name no version."
    )


def _rollback_question(client: "Client", model: str) -> str:
    champion = _champion(client, model)
    of = f"Champion {champion} of {model!r}" if champion is not None else f"The champion of {model!r}"
    return f"Roll back? {of} gives way to the one before it, which then answers all requests that name no version."


def _champion(client: "Client", model: str) -> str | None:
    """Return the present champion's version, None without one; the command's own request tells what is wrong."""
    from serving.cli.client import RequestFailed

    try:
        version: str | None = client.get(f"/v1/models/{model}/champion")["version"]
    except RequestFailed:
        return None
    return version


def _wait_for_evaluation(client: "Client", model: str, version: str, number: int) -> Mapping[str, Any]:
    """Wait until an evaluation ends, and return its version.

    Raises:
        EvaluationFailed: it ended without a report.
    """
    from rich.console import Console

    from serving.errors import EvaluationFailed

    started = time.monotonic()
    # Shown on a terminal alone.
    with Console(stderr=True).status("") as status:
        while True:
            status.update(
                f"measuring version {version}, after all other work: {time.monotonic() - started:.0f} s"
            )
            answer: Mapping[str, Any] = client.get(f"/v1/models/{model}/versions/{version}")
            evaluation = next((each for each in answer["evaluations"] if each["id"] == number), None)
            if evaluation is None or evaluation["state"] == "failed":
                why = "it is gone" if evaluation is None else evaluation["reason"]
                raise EvaluationFailed(f"version {version} has no report: {why}")
            if evaluation["state"] == "done":
                return answer
            time.sleep(_POLL_SECONDS)


def _state(version: Mapping[str, Any]) -> str:
    """Return the state as people read it: only `failed` is a fault."""
    match version["state"]:
        case "absent":
            return "asleep: starts when asked"
        case "failed":
            return f"failed: {version.get('reason') or 'see `valence logs`'}"
        case state:
            return str(state)


def _show_version(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(answer)
        return
    report = next((each["report"] for each in answer["evaluations"] if each["report"]), None)
    record: dict[str, Any] = {
        name: answer[name] for name in ("model", "version", "name", "description", "languages", "kind")
    }
    record |= {
        "state": _state(answer),
        "aliases": answer["aliases"],
        "created_at": local_time(answer["created_at"]),
    }
    if report is not None:
        record |= {
            name: f"{value['value']:.4f} ({value['low']:.4f} to {value['high']:.4f})"
            for name, value in report["held_out"].items()
            if name in ("accuracy", "macro_f1", "ece")
        }
        record |= {"latency": report["latency"], "agreement": report["agreement"]}
        if (replay := report["replay"]) is not None:
            record["flips"] = f"{replay['flips']} of {replay['texts']} against {replay['champion_version']}"
    record["gates"] = "passed" if answer["gates"]["passed"] else "not passed"
    record |= {f"version {number}": why for number, why in answer["gates"]["missing"].items()}
    show_record(record, as_json=False)
    _show_checks(answer["gates"]["checks"])


def _show_checks(checks: Sequence[Mapping[str, Any]]) -> None:
    """Print the gates apart from the measures, some of which have the same names."""
    if checks:
        rows = [
            {**check, "gate": check["name"], "passed": "✓" if check["passed"] else "✗"} for check in checks
        ]
        show_table(rows, ("gate", "passed", "value", "bound", "why"), answer=rows, as_json=False)


def _show_outcome(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(answer)
        return
    show_record({name: value for name, value in answer.items() if name != "report"}, as_json=False)
    _show_checks((answer["report"] or {}).get("checks", ()))


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="Folder of a bundle, as `valence train` writes it.")],
    model: Into = "sentiment",
    alias: Annotated[str | None, typer.Option(help="An alias to give to the version.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the version; default: the bundle's.")] = None,
    description: Description = None,
    languages: Languages = None,
    as_json: AsJson = False,
) -> None:
    """Register a bundle as a version, with its run, metrics and artifacts.

    Of a registered bundle, only what the options say changes.
    The encoder of a joint version is built first, and refused if its vectors leave the space.
    """
    from registry.bundles.bundle import Bundle
    from registry.store.registration import register_with_encoder
    from serving.core.connections import build_running_registry
    from serving.core.home import Home
    from serving.settings import Settings

    settings = Settings()
    record = register_with_encoder(
        build_running_registry(settings),
        Bundle.open(folder),
        work=Home(settings.home).build,
        model=model,
        alias=alias,
        name=name,
        description=description,
        languages=languages,
        progress=lambda step: print(step, file=sys.stderr),
    )
    _show_registered(record, as_json=as_json)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A folder, or a classifier's name on the Hugging Face hub.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Labels of the source for each of ours: negative=LABEL_0,neutral=,positive=LABEL_1,positive=LABEL_2 "
            "(several are added; leave one empty that the source lacks)."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A label of the source to ignore; may be repeated.")
    ] = None,
    model: Into = "sentiment",
    name: Annotated[
        str | None, typer.Option(help="Name of the version, or of the space; default: the source.")
    ] = None,
    description: Description = None,
    languages: Languages = None,
    online: Annotated[
        bool, typer.Option("--online", help="Download the source if it isn't on this machine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import a classifier of transformers as a version, or an encoder of sentence-transformers as a space.

    Versions for a space are trained with `valence train head --space NAME`.
    """
    from registry.encoders.classifier import declared_labels
    from registry.store.huggingface_import import LabelMap, import_model, propose_labels
    from serving.core.connections import build_running_registry
    from serving.core.home import Home
    from serving.settings import Settings

    folder = Path(source).expanduser()
    if labels is None and (folder / "modules.json").exists():
        import_space(folder, name or folder.resolve().name, as_json=as_json)
        return
    if labels is None:
        known = declared_labels(source)
        if known is None:
            raise typer.BadParameter(
                "say which labels of the model are ours, as in negative=LABEL_0,neutral=,positive=LABEL_1",
                param_hint="--labels",
            )
        message = f"the model has {', '.join(known)}; look whether this is right: --labels '{propose_labels(known)}'"
        raise typer.BadParameter(message, param_hint="--labels")
    settings = Settings()
    try:
        mapping = LabelMap.parse(labels, ignored=ignore or ())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--labels") from None
    imported = import_model(
        build_running_registry(settings),
        source,
        mapping,
        work=Home(settings.home).build,
        model=model,
        name=name,
        description=description,
        languages=languages,
        online=online,
        progress=lambda step: print(step, file=sys.stderr),
    )
    _show_registered(imported.version, as_json=as_json)


def _show_registered(record: "VersionRecord", *, as_json: bool) -> None:
    names = ("model", "version", "name", "description", "languages", "kind", "aliases", "encoder", "digest")
    show_record({name: getattr(record, name) for name in names}, as_json=as_json)
