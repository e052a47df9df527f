"""`valence users`: the users who own predictions and keys."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from uuid import UUID

import typer

from serving.cli.output import Api, Yes, calls_api, show_page, show_record

if TYPE_CHECKING:
    from serving.cli.client import Client

app = typer.Typer(no_args_is_help=True, help="Users; for admins.")

User: TypeAlias = Annotated[str, typer.Argument(metavar="USER", help="The user's id or username.")]


@app.command()
@calls_api
def create(
    api: Api, username: Annotated[str, typer.Argument()], email: Annotated[str, typer.Argument()]
) -> None:
    """Add a user."""
    answer = api.client.post("/v1/users", username=username, email=email)
    show_record(answer, as_json=api.as_json)


@app.command("list")
@calls_api
def list_(
    api: Api,
    name: Annotated[str | None, typer.Option(help="Beginning of the usernames, whatever its case.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Users to show.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Cursor that the previous page named.")] = None,
) -> None:
    """List the users, newest first."""
    answer = api.client.get("/v1/users", name=name, limit=limit, cursor=cursor)
    show_page(answer, ("id", "username", "email", "created_at"), "users", as_json=api.as_json)


@app.command()
@calls_api
def show(api: Api, user: User) -> None:
    """Show a user."""
    show_record(find_user(api.client, user), as_json=api.as_json)


@app.command()
@calls_api
def erase(api: Api, user: User, yes: Yes = False) -> None:
    """Erase the data of a user, and print the receipt; the account stays."""
    found = find_user(api.client, user)
    if not yes:
        whose = f"{found['username']} ({found['id']})"
        typer.confirm(f"Erase the data of user {whose} permanently?", abort=True, err=True)
    answer = api.client.delete(f"/v1/users/{found['id']}/data")
    show_record(answer, as_json=api.as_json)


def find_user(client: "Client", user: str) -> Mapping[str, Any]:
    """Return a user by id or username, which is unique whatever its case.

    Raises RequestFailed if there is none.
    """
    from serving.cli.client import RequestFailed

    try:
        found: Mapping[str, Any] = client.get(f"/v1/users/{UUID(user)}")
    except ValueError:
        pass
    else:
        return found
    cursor: str | None = None
    while True:
        page = client.get("/v1/users", name=user, limit=200, cursor=cursor)
        for each in page["items"]:
            if each["username"].lower() == user.lower():
                named: Mapping[str, Any] = each
                return named
        if (cursor := page["next_cursor"]) is None:
            raise RequestFailed(f"there is no user {user!r}: `valence users list` shows who there is")
