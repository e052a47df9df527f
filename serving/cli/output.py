"""The common options of the commands, their client, and the printing of answers."""

import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec, TypeAlias

import typer

from serving.core.moments import FORMS, read_moment

if TYPE_CHECKING:
    from serving.cli.client import Client

Url: TypeAlias = Annotated[
    str | None, typer.Option("--url", help="The platform's URL [VALENCE_URL; default: this machine's].")
]
Key: TypeAlias = Annotated[
    str | None, typer.Option("--key", help="The API key [VALENCE_API_KEY; default: the home's admin.key].")
]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", help="Don't ask.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Everything but what JSON is written in: its strings can hold all of this, and nothing else in it does.
_NOT_ASCII: Final = re.compile(r"[^\x20-\x7e\n]")
# Of a text in a table.
_MOST_CHARACTERS: Final = 200
TIMES: Final = "RFC 3339, a date, yesterday, or an age such as 24h or 7d"

P = ParamSpec("P")


@dataclass(frozen=True, kw_only=True, slots=True)
class Api:
    """The client of one command, and whether its answer is printed as JSON."""

    client: "Client"
    as_json: bool


def calls_api(command: Callable[Concatenate[Api, P], None]) -> Callable[..., None]:
    """Give a command an open client as its first argument, and the options --url, --key and --json."""

    def run(*, url: Url = None, key: Key = None, as_json: AsJson = False, **arguments: Any) -> None:
        with connect(url, key) as client:
            command(Api(client=client, as_json=as_json), **arguments)  # type: ignore[call-arg]  # Typer passes P

    own = list(inspect.signature(command).parameters.values())[1:]
    common = list(inspect.signature(run).parameters.values())[:3]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *common)]
    # Typer reads a command's signature, and its annotations by name.
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def connect(url: str | None, key: str | None) -> "Client":
    """Return a client by options, environment and home, in this order; the home's key is sent to its own URL only."""
    from serving.cli.client import Client
    from serving.core.home import Home
    from serving.settings import Settings

    settings = Settings()
    if key is None and settings.api_key is not None:
        key = settings.api_key.get_secret_value()
    admin_key = Home(settings.home).admin_key
    if key is None and url is None and settings.url is None and admin_key.exists():
        key = admin_key.read_text(encoding="ascii").strip()
    return Client((url or settings.base_url).rstrip("/"), key=key)


def variable(name: str) -> str:
    """Return the environment variable of a setting, given the name of either."""
    from pydantic import AliasChoices

    from serving.settings import Settings

    field = Settings.model_fields.get(name.lower())
    if field is not None and isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return f"VALENCE_{name.upper()}"


def moment(text: str | None, option: str) -> datetime | None:
    """Return the time that an option names; None: it isn't given."""
    if text is None:
        return None
    try:
        named = read_moment(text) or datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time: write {FORMS}", param_hint=option) from None
    if named.tzinfo is None:
        raise typer.BadParameter(f"{text} names no zone: add Z or an offset", param_hint=option)
    return named


def local_time(text: str | None) -> str | None:
    """Return a time of an answer as the clock here showed it, to the minute; another text as it is."""
    if text is None:
        return None
    try:
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return text


def confirm(question: str | Callable[[], str], *, yes: bool) -> None:
    """Ask before a change that can be taken back; nobody is asked without a terminal, such as a script."""
    if not yes and sys.stdin.isatty():
        typer.confirm(question if isinstance(question, str) else question(), abort=True, err=True)


def key_names(client: "Client") -> Callable[[str | None], str | None]:
    """Return what names a key by its id: the key's name for admins, who may list keys, else the beginning of the id."""
    from serving.cli.client import RequestFailed

    try:
        names = {key["id"]: key["name"] for key in client.get("/v1/keys")["items"]}
    except RequestFailed:
        names = {}
    return lambda key_id: None if key_id is None else names.get(key_id, key_id[:8])


def show_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one thing with a line for each field."""
    if as_json:
        show_json(record)
        return
    width = max(map(len, record), default=0)
    for name, value in record.items():
        print(f"{name:<{width}}  {cell(value)}")


def show_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, answer: object, as_json: bool
) -> None:
    """Print a row for each thing, or the whole answer as JSON."""
    if as_json:
        show_json(answer)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # An id that is folded can't be copied.
        table.add_column(column, overflow="fold", no_wrap=column == "id" or column.endswith("_id"))
    for row in rows:
        table.add_row(*(Text(_cut(cell(row.get(column)))) for column in columns))
    if sys.stdout.isatty():
        Console().print(table)
        return
    # In a pipe each row is one line, as long as its last cell.
    plain = Console(width=100_000, file=io.StringIO())
    with plain.capture() as capture:
        plain.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())


def show_page(answer: Mapping[str, Any], columns: Sequence[str], things: str, *, as_json: bool) -> None:
    """Print a page of a list, and how to get the next one."""
    show_table(answer["items"], columns, answer=answer, as_json=as_json)
    if not as_json and answer["next_cursor"] is not None:
        print(f"more {things}: --cursor {cell(answer['next_cursor'])}", file=sys.stderr)


def _cut(text: str) -> str:
    """Return the beginning of a long text; the JSON has all of it."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}… ({len(text):,} characters)"


def show_near(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the results of a search, with a row for each text."""
    rows = [
        {
            **result,
            "predictions": [
                f"{prediction['sentiment']} (v{prediction['model_version']})"
                for prediction in result["predictions"]
            ],
        }
        for result in answer["results"]
    ]
    # Words alone compare nothing.
    compared = not rows or any(row["similarity"] is not None for row in rows)
    columns = ("similarity", "predictions", "text") if compared else ("predictions", "text")
    show_table(rows, columns, answer=answer, as_json=as_json)


def show_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(escape_controls(json.dumps(value, indent=2, ensure_ascii=False, default=str)))


def escape_controls(document: str) -> str:
    """Return the same JSON with everything escaped that a terminal could obey instead of showing it."""
    return _NOT_ASCII.sub(lambda found: _escape(found[0]), document)


def _escape(letter: str) -> str:
    if letter.isprintable():
        return letter
    # Beyond 16 bits it takes two escapes.
    return f"\\u{ord(letter):04x}" if ord(letter) <= 0xFFFF else json.dumps(letter)[1:-1]


def printable(text: str) -> str:
    """Return a text with a dot for everything that a terminal could obey instead of showing it."""
    return "".join(letter if letter.isprintable() else "\N{MIDDLE DOT}" for letter in text)


def cell(value: object) -> str:
    """Return a value as people read it, without control characters that stored texts may hold."""
    match value:
        case None:
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case float():
            text = f"{value:.4g}"
        case str():
            text = value
        case Mapping():
            text = "  ".join(f"{name} {cell(part)}" for name, part in value.items()) or "-"
        case Sequence():
            text = ", ".join(cell(part) for part in value) or "-"
        case _:
            text = str(value)
    return printable(text)
