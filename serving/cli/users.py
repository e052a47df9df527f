"""`valence users`: the users who own predictions and keys."""

from typing import Annotated

import typer

from serving.cli.output import AsJson, Key, Url, Yes, connect, show_record

app = typer.Typer(no_args_is_help=True, help="Users; for admins.")


@app.command()
def create(
    username: Annotated[str, typer.Argument()],
    email: Annotated[str, typer.Argument()],
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Add a user."""
    with connect(url, key) as client:
        answer = client.post("/v1/users", username=username, email=email)
    show_record(answer, as_json=as_json)


@app.command()
def show(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID")],
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show a user."""
    with connect(url, key) as client:
        answer = client.get(f"/v1/users/{user_id}")
    show_record(answer, as_json=as_json)


@app.command()
def erase(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID")],
    yes: Yes = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Erase the data of a user, and print the receipt; the account stays."""
    if not yes:
        typer.confirm(f"Erase the data of user {user_id} permanently?", abort=True, err=True)
    with connect(url, key) as client:
        answer = client.delete(f"/v1/users/{user_id}/data")
    show_record(answer, as_json=as_json)
