"""`valence models`: which models and versions exist, and what answers."""

from typing import Annotated

import typer

from serving.cli.common import AsJson, Key, Url, connect, show_table

app = typer.Typer(no_args_is_help=True, help="Models and their versions.")


@app.command("list")
def list_(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the models."""
    with connect(url, key) as client:
        answer = client.get("/v1/models")
    show_table(answer["items"], ("name",), answer=answer, as_json=as_json)


@app.command()
def show(
    name: Annotated[str, typer.Argument()] = "sentiment",
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show the versions of a model; all that was measured of them is in the JSON."""
    with connect(url, key) as client:
        answer = client.get(f"/v1/models/{name}")
    rows = [
        {
            **version,
            "encoder": version["encoder"] and version["encoder"][:12],
            "accuracy": version["metrics"].get("rated.accuracy"),
            "macro-F1": version["metrics"].get("rated.macro_f1"),
        }
        for version in answer["versions"]
    ]
    columns = ("version", "aliases", "kind", "state", "encoder", "accuracy", "macro-F1")
    show_table(rows, columns, answer=answer, as_json=as_json)
