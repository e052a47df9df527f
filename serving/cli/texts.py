"""`valence texts`: stored texts."""

from typing import Annotated

import typer

from serving.cli.output import Api, Yes, calls_api, show_record

app = typer.Typer(no_args_is_help=True, help="Stored texts; for admins.")


@app.command()
@calls_api
def erase(api: Api, text_id: Annotated[str, typer.Argument(metavar="TEXT_ID")], yes: Yes = False) -> None:
    """Erase a text of any user, and print the receipt."""
    if not yes:
        typer.confirm(f"Erase text {text_id} permanently?", abort=True, err=True)
    answer = api.client.delete(f"/v1/texts/{text_id}")
    show_record(answer, as_json=api.as_json)
