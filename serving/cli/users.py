"""`valence users`: the users who own predictions and keys."""

from typing import Annotated

import typer

from serving.cli.output import Api, Yes, calls_api, show_record

app = typer.Typer(no_args_is_help=True, help="Users; for admins.")


@app.command()
@calls_api
def create(
    api: Api, username: Annotated[str, typer.Argument()], email: Annotated[str, typer.Argument()]
) -> None:
    """Add a user."""
    answer = api.client.post("/v1/users", username=username, email=email)
    show_record(answer, as_json=api.as_json)


@app.command()
@calls_api
def show(api: Api, user_id: Annotated[str, typer.Argument(metavar="USER_ID")]) -> None:
    """Show a user."""
    answer = api.client.get(f"/v1/users/{user_id}")
    show_record(answer, as_json=api.as_json)


@app.command()
@calls_api
def erase(api: Api, user_id: Annotated[str, typer.Argument(metavar="USER_ID")], yes: Yes = False) -> None:
    """Erase the data of a user, and print the receipt; the account stays."""
    if not yes:
        typer.confirm(f"Erase the data of user {user_id} permanently?", abort=True, err=True)
    answer = api.client.delete(f"/v1/users/{user_id}/data")
    show_record(answer, as_json=api.as_json)
