"""`valence keys`: API keys."""

from enum import StrEnum
from typing import Annotated

import typer

from serving.cli.output import Api, Key, Url, calls_api, connect, show_record, show_table
from serving.cli.users import find_user

app = typer.Typer(no_args_is_help=True, help="API keys; for admins.")


class KeyRole(StrEnum):
    """The rights of a key; each role includes the ones before it."""

    CLIENT = "client"
    ENGINEER = "engineer"
    ADMIN = "admin"


@app.command()
@calls_api
def create(
    api: Api,
    name: Annotated[str, typer.Argument(help="Purpose of the key.")],
    role: Annotated[KeyRole, typer.Option(help="Rights of the key.")] = KeyRole.CLIENT,
    user: Annotated[str | None, typer.Option(help="Id or username of its owner; default: no user.")] = None,
    rate_limit: Annotated[float | None, typer.Option(min=0, help="Texts per second.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="Time when it expires: RFC 3339, a date, or 90d from now.")
    ] = None,
) -> None:
    """Create a key and print it; it can't be shown again."""
    owner = None if user is None else find_user(api.client, user)["id"]
    answer = api.client.post(
        "/v1/keys", name=name, role=role, user_id=owner, rate_limit=rate_limit, expires_at=expires
    )
    show_record(answer, as_json=api.as_json)


@app.command("list")
@calls_api
def list_(api: Api) -> None:
    """List the keys."""
    answer = api.client.get("/v1/keys")
    columns = ("id", "name", "role", "user_id", "rate_limit", "created_at", "expires_at", "revoked_at")
    show_table(answer["items"], columns, answer=answer, as_json=api.as_json)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID")], url: Url = None, key: Key = None
) -> None:
    """Revoke a key and the tokens made from it."""
    with connect(url, key) as client:
        client.delete(f"/v1/keys/{key_id}")
