"""`valence db`: the schema's version in the database that the settings name, running or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from serving.cli.common import AsJson, show_record

app = typer.Typer(no_args_is_help=True, help="The database's schema.")


@app.command()
def upgrade(revision: Annotated[str, typer.Argument()] = "head", as_json: AsJson = False) -> None:
    """Bring the schema up to a revision; data stays."""
    from db import schema

    with _database() as url:
        found = schema.upgrade(url, revision)
    show_record({"revision": found, "head": schema.head()}, as_json=as_json)


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="A revision, or `base`: to empty.")],
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take the schema down to a revision. What the later revisions hold is deleted."""
    from db import schema

    if not yes:
        typer.confirm(f"Go down to {revision} and delete what later revisions hold?", abort=True, err=True)
    with _database() as url:
        found = schema.downgrade(url, revision)
    show_record({"revision": found, "head": schema.head()}, as_json=as_json)


@app.command()
def current(
    wait: Annotated[
        float | None, typer.Option(min=0, help="Wait so many seconds until this release can work with it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which revision the database is at, and which one this release needs."""
    from db import schema

    with _database() as url:
        found = schema.current_at(url) if wait is None else schema.wait_for(url, wait)
    show_record({"revision": found, "head": schema.head()}, as_json=as_json)


@contextmanager
def _database() -> Iterator[str]:
    """The URL of the database; an embedded one that isn't running runs for as long as this needs it."""
    from db.embedded import EmbeddedPostgres
    from db.errors import AlreadyOwned
    from serving.settings import Settings

    settings = Settings()
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    server = EmbeddedPostgres(settings.home)
    try:
        server.start()
    except AlreadyOwned:
        yield server.url()
        return
    try:
        yield server.create_database("valence")
    finally:
        server.stop()
