"""`valence db`: schema, roles, backups and encryption of the database in the settings, running or not."""

import os
import sys
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from serving.cli.output import TIMES, AsJson, Yes, moment, show_record, show_table

app = typer.Typer(no_args_is_help=True, help="The database: its schema, its backups, its encryption.")


@app.command()
def upgrade(revision: Annotated[str, typer.Argument()] = "head", as_json: AsJson = False) -> None:
    """Bring the schema up to a revision; data stays."""
    from db.schema import revisions

    with _database(make=True) as url:
        revision_now = revisions.upgrade(url, revision)
    show_record({"revision": revision_now, "head": revisions.head()}, as_json=as_json)


@app.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="A revision, or `base` for an empty database.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take the schema down to a revision, and delete the data of later revisions."""
    from db.schema import revisions

    if not yes:
        typer.confirm(f"Go down to {revision} and delete the data of later revisions?", abort=True, err=True)
    with _database() as url:
        revision_now = revisions.downgrade(url, revision)
    show_record({"revision": revision_now, "head": revisions.head()}, as_json=as_json)


@app.command()
def current(
    wait: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait until this release can work with the schema.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the revision of the database, and the one that this release needs."""
    from db.schema import revisions

    with _database() as url:
        revision_now = (
            revisions.read_current(url) if wait is None else revisions.wait_until_compatible(url, wait)
        )
    show_record({"revision": revision_now, "head": revisions.head()}, as_json=as_json)


@app.command()
def roles(
    owner: Annotated[str, typer.Option(help="Role that owns the schema and migrates it.")] = "valence_owner",
    application: Annotated[str, typer.Option(help="Role of the platform.")] = "valence_app",
    reader: Annotated[str, typer.Option(help="Role that reads only.")] = "valence_reader",
    connections: Annotated[
        tuple[int, int, int],
        typer.Option(help="Maximum connections of each role, in this order; -1: no limit."),
    ] = (5, 60, 20),
    as_json: AsJson = False,
) -> None:
    """Create the three roles with the least rights that each needs, or correct them; safe to run again.

    Passwords come from VALENCE_OWNER_PASSWORD, VALENCE_APPLICATION_PASSWORD and VALENCE_READER_PASSWORD, or from
    the files in the same variables with _FILE appended; a role without a password variable keeps its own.
    """
    from db.schema.roles import Login, Role, ensure_roles

    names = dict(zip(Role, (owner, application, reader), strict=True))
    logins = {
        role: Login(name=name, password=_password(role), connections=bound)
        for (role, name), bound in zip(names.items(), connections, strict=True)
    }
    with _database() as url:
        roles = ensure_roles(url, logins)
    rows = [
        {
            "role": each.role.value,
            "name": each.name,
            "connections": each.connections,
            "created": each.created,
            "password": each.has_password,
        }
        for each in roles
    ]
    columns = ("role", "name", "connections", "created", "password")
    show_table(rows, columns, answer={"roles": rows}, as_json=as_json)


def _password(role: str) -> str | None:
    """Return the password of a role, from the environment or from the file that it names."""
    variable = f"VALENCE_{role.upper()}_PASSWORD"
    if (path := os.environ.get(f"{variable}_FILE")) is not None:
        return Path(path).read_text(encoding="utf-8").rstrip("\n") or None
    return os.environ.get(variable) or None


@app.command()
def backup(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE_OR_DIR", help="Destination; default: the working directory."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a backup of both databases, the artifacts and the installation key; the platform may run.

    The backup holds the texts and that key, so it is as secret as the database. It holds neither an API key nor what
    signs tokens.
    """
    from serving.operations import backups
    from serving.settings import Settings

    if output is not None and not output.suffix and not output.is_dir():
        raise typer.BadParameter(
            f"there is no folder {output}: make it, or name a file, as in {output}.backup",
            param_hint="--output",
        )
    show_record(backups.backup(Settings(), output, _say()), as_json=as_json)


@app.command("base-backup")
def base_backup(as_json: AsJson = False) -> None:
    """Copy the embedded server's files into VALENCE_WAL_ARCHIVE, to restore any later moment from there."""
    from serving.operations import backups
    from serving.settings import Settings

    show_record(backups.base_backup(Settings(), _say()), as_json=as_json)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="BACKUP")],
    until: Annotated[
        str | None,
        typer.Option(help=f"For a base backup: the time to restore ({TIMES}); default: the end of the WAL."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(help="For a base backup: the folder of its WAL; default: the folder of the backup."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty home.

    Restore only what you made: a backup of somebody else's can run code here.
    """
    from serving.operations import backups
    from serving.settings import Settings

    record = backups.restore(Settings(), file, _say(), until=moment(until, "--until"), log=archive)
    show_record(record, as_json=as_json)


@app.command()
def scrub(yes: Yes = False, as_json: AsJson = False) -> None:
    """Overwrite deleted data in the database's files. Each table is locked while it is rewritten."""
    from db.backup import scrub as scrubbing

    if not yes:
        typer.confirm("Rewrite the tables, while requests to them wait or fail?", abort=True, err=True)
    with _database() as url:
        log = scrubbing.scrub(url, _say())
    show_record({"tables": True, "log": log}, as_json=as_json)


@app.command()
def key(
    name: Annotated[
        str | None, typer.Option("--id", help="Id of the key, which is no secret; default: today's date.")
    ] = None,
) -> None:
    """Make a key for VALENCE_TEXT_KEYS and print it. It is stored nowhere: without it the texts are lost."""
    from db.core.cipher import generate_text_key

    print(generate_text_key(name or f"{datetime.now(UTC):%Y-%m-%d}"))


@app.command()
def encrypt(as_json: AsJson = False) -> None:
    """Encrypt texts, comments and stored answers with the first of VALENCE_TEXT_KEYS; with `plain` first, decrypt them.

    The platform may run if each of its processes knows the first key. After an interruption, run the command again.
    Prints how many values use each key; a key without values may be removed from the setting.
    """
    from serving.operations import encryption
    from serving.settings import Settings

    with _database() as url:
        done = encryption.encrypt(Settings(), url, _say())
    rows = [{"key": name, **counts} for name, counts in done["held"].items()]
    show_table(rows, ("key", "texts", "comments", "answers"), answer=done, as_json=as_json)


def _say() -> partial[None]:
    return partial(print, file=sys.stderr, flush=True)


def _database(*, make: bool = False) -> AbstractContextManager[str]:
    from serving.operations.backups import database
    from serving.settings import Settings

    return database(Settings(), make=make)
