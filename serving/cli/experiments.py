"""`valence experiments`: challengers compared with champions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli.output import Api, Yes, calls_api, confirm, show_json, show_record, show_table

app = typer.Typer(no_args_is_help=True, help="Compare challengers with champions.")

_STAGE = ("stage", "share", "feedback", "difference", "verdict")
Id = Annotated[str, typer.Argument(metavar="EXPERIMENT_ID")]
Policy = Annotated[str | None, typer.Option(help="JSON, or the path of a JSON file; default: observe only.")]


@app.command()
@calls_api
def start(
    api: Api,
    challenger: Annotated[str, typer.Argument(help="The version to compare with the champion.")],
    share: Annotated[float, typer.Option(min=0, max=1, help="The challenger's share of the units.")],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "sentiment",
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="Score the share in the background; the champion gives all answers."),
    ] = False,
    policy: Policy = None,
) -> None:
    """Start an experiment with a version on a share of the units."""
    answer = api.client.post(
        "/v1/experiments",
        model=model,
        challenger=challenger,
        share=share,
        shadow=shadow or None,
        policy=_policy(policy),
    )
    _show(answer, as_json=api.as_json)


@app.command("list")
@calls_api
def list_(api: Api) -> None:
    """List the experiments, newest first."""
    answer = api.client.get("/v1/experiments")
    columns = ("id", "model", "champion", "challenger", "share", "shadow", "state", "reason")
    show_table(answer["items"], columns, answer=answer, as_json=api.as_json)


@app.command()
@calls_api
def show(api: Api, experiment: Id) -> None:
    """Show the counts of an experiment's arms, and the verdict of its policy."""
    answer = api.client.get(f"/v1/experiments/{experiment}")
    _show(answer, as_json=api.as_json)


@app.command()
@calls_api
def change(
    api: Api,
    experiment: Id,
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help="The challenger's share of the units.")
    ] = None,
    policy: Policy = None,
    yes: Yes = False,
) -> None:
    """Change the share, which moves as few units as possible and begins a new stage, or the policy.

    The verdict of a new stage begins anew. On a terminal, it asks before.
    """
    if share is None and policy is None:
        raise typer.BadParameter("say what to change: --share, --policy, or both", param_hint="--share")
    if share is not None:
        confirm(
            "A new share begins a new stage, whose verdict starts without any feedback. Change it?", yes=yes
        )
    answer = api.client.patch(f"/v1/experiments/{experiment}", share=share, policy=_policy(policy))
    _show(answer, as_json=api.as_json)


@app.command()
@calls_api
def stop(
    api: Api,
    experiment: Id,
    reason: Annotated[str | None, typer.Option(help="Reason, stored with the experiment.")] = None,
) -> None:
    """Stop an experiment; the champion answers all requests again."""
    answer = api.client.post(f"/v1/experiments/{experiment}/stop", reason=reason)
    _show(answer, as_json=api.as_json)


def _policy(given: str | None) -> dict[str, Any] | None:
    if given is None:
        return None
    is_file = not given.lstrip().startswith("{")
    if is_file and not Path(given).is_file():
        raise typer.BadParameter(
            f'{given!r} is neither a file nor a JSON object, as in \'{{"action": "decide"}}\'',
            param_hint="--policy",
        )
    try:
        policy = json.loads(Path(given).read_text(encoding="utf-8") if is_file else given)
    except ValueError as error:
        raise typer.BadParameter(f"the policy isn't JSON: {error}", param_hint="--policy") from error
    if not isinstance(policy, dict):
        raise typer.BadParameter("the policy is no JSON object", param_hint="--policy")
    return policy


def _show(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(answer)
        return
    columns = ("id", "model", "share", "shadow", "stage", "state", "reason")
    show_record({name: answer[name] for name in columns}, as_json=False)
    rows = [{**arm, "accuracy": _interval(arm["accuracy"])} for arm in answer["arms"]]
    arms = ("arm", "version", "exposures", "units", "feedback", "accuracy", "faults", "p95_ms")
    show_table(rows, arms, answer=rows, as_json=False)
    if len(answer["stages"]) > 1:
        show_table([_stage(each) for each in answer["stages"]], _STAGE, answer=rows, as_json=False)
    verdict = answer["verdict"]
    of_stage = f" (stage {verdict['stage']})" if verdict["stage"] != answer["stage"] else ""
    lines = {
        "verdict": f"{verdict['verdict']}{of_stage}: {verdict['reason']}",
        "meaning": verdict["explanation"],
    }
    show_record(lines, as_json=False)


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    feedback = " / ".join(f"{arm['judged_units']:,}" for arm in stage["arms"])
    return {
        "stage": stage["number"],
        "share": stage["share"],
        "feedback": feedback,
        "difference": _interval(stage["difference"]),
        "verdict": stage["verdict"],
    }


def _interval(estimate: Mapping[str, float] | None) -> str | None:
    if estimate is None:
        return None
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
