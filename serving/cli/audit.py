"""`valence audit`: who did what."""

from typing import Annotated

import typer

from serving.cli.output import TIMES, Api, calls_api, key_names, local_time, show_page


@calls_api
def audit(
    api: Api,
    actor: Annotated[str | None, typer.Option(help="Id of the key that did it.")] = None,
    action: Annotated[str | None, typer.Option(help="Action, as champion.promote.")] = None,
    subject: Annotated[str | None, typer.Option(help="Subject: the name of a model, or an id.")] = None,
    since: Annotated[str | None, typer.Option(help=f"First time: {TIMES}.")] = None,
    until: Annotated[str | None, typer.Option(help="Time to stop before.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Entries to show.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Cursor that the previous page named.")] = None,
) -> None:
    """Show who did what, newest first; for admins."""
    answer = api.client.get(
        "/v1/audit",
        actor=actor,
        action=action,
        subject=subject,
        since=since,
        until=until,
        limit=limit,
        cursor=cursor,
    )
    columns = ("at", "actor", "action", "subject", "detail")
    if not api.as_json:
        name_key = key_names(api.client)
        rows = [
            {**each, "at": local_time(each["at"]), "actor": name_key(each["actor"])}
            for each in answer["items"]
        ]
        answer = {**answer, "items": rows}
    show_page(answer, columns, "entries", as_json=api.as_json)
