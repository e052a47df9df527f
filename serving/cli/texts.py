"""`valence texts`: stored texts."""

from typing import Annotated

import typer

from serving.cli.output import AsJson, Key, Url, Yes, connect, show_record

app = typer.Typer(no_args_is_help=True, help="Stored texts; for admins.")


@app.command()
def erase(
    text_id: Annotated[str, typer.Argument(metavar="TEXT_ID")],
    yes: Yes = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Erase a text of any user, and print the receipt."""
    if not yes:
        typer.confirm(f"Erase text {text_id} permanently?", abort=True, err=True)
    with connect(url, key) as client:
        answer = client.delete(f"/v1/texts/{text_id}")
    show_record(answer, as_json=as_json)
