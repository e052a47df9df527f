"""`valence spaces`: the embedding spaces of the index, their building, and the switch between them."""

import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from serving.cli.output import Api, AsJson, Yes, calls_api, show_record, show_table

app = typer.Typer(no_args_is_help=True, help="Embedding spaces of the similarity index.")

Name: TypeAlias = Annotated[str, typer.Argument(metavar="NAME", help="The space.")]


@app.command("list")
@calls_api
def list_(api: Api) -> None:
    """List the spaces and their progress."""
    answer = api.client.get("/v1/spaces")
    columns = ("name", "state", "answers", "vectors", "done", "texts/s", "left", "reason")
    show_table([_row(each) for each in answer["items"]], columns, answer=answer, as_json=api.as_json)


@app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="A folder in the layout of sentence-transformers.")],
    name: Name,
    as_json: AsJson = False,
) -> None:
    """Register the encoder that defines a space, as `valence models import` does."""
    import_space(folder, name, as_json=as_json)


def import_space(folder: Path, name: str, *, as_json: bool) -> None:
    """Register the encoder in a folder, and say what may follow."""
    from registry.store.registration import ensure_space_encoder
    from serving.core.connections import build_running_registry
    from serving.core.home import Home
    from serving.settings import Settings

    settings = Settings()
    record = ensure_space_encoder(
        build_running_registry(settings),
        folder,
        name,
        work=Home(settings.home).build,
        progress=lambda step: print(step, file=sys.stderr),
    )
    shown = {"space": record.space, "dimensions": record.dimensions, "encoder": record.digest}
    show_record(shown, as_json=as_json)
    hint = f"next: `valence spaces build {name}` to search by it, `valence train head OUT --space {name}` for a version"
    print(hint, file=sys.stderr)


@app.command()
@calls_api
def build(api: Api, name: Name) -> None:
    """Compute vectors of another space for every text, in the background; searches stay as they are."""
    answer = api.client.post("/v1/spaces", name=name)
    show_record(answer if api.as_json else _row(answer), as_json=api.as_json)


@app.command()
@calls_api
def switch(api: Api, name: Name) -> None:
    """Search a complete space from now on; the previous one is kept complete, so that you can switch back."""
    answer = api.client.post(f"/v1/spaces/{name}/switch")
    show_record(answer if api.as_json else _row(answer), as_json=api.as_json)


@app.command()
@calls_api
def remove(api: Api, name: Name, yes: Yes = False) -> None:
    """Remove the vectors of a space that isn't live, in the background."""
    if not yes:
        typer.confirm(f"Remove all vectors of the space {name}?", abort=True, err=True)
    answer = api.client.delete(f"/v1/spaces/{name}")
    show_record(answer if api.as_json else _row(answer), as_json=api.as_json)


def _row(space: dict[str, Any]) -> dict[str, Any]:
    left = space["seconds_left"]
    return {
        "name": space["name"],
        "state": space["state"],
        "answers": space["answers"],
        "vectors": space["vectors"],
        "done": f"{100 * space['share']:.1f} %",
        "texts/s": space["pace"] and round(space["pace"], 1),
        "left": left if left is None else f"{left / 60:.0f} min",
        "reason": space["reason"],
    }
