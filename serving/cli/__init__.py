"""`valence …`: parses arguments, calls, prints. Holds no logic.

Exit codes: 0 done, 1 failed with one line on stderr, 2 wrong usage. Each command imports the
heavy libraries that it needs, so that `--help` answers at once.
"""

import os
import sys
from typing import Annotated, Any

import typer

from db.core.environment import forget_libpq_variables
from serving.cli import (
    analytics,
    audit,
    database,
    experiments,
    keys,
    logs,
    mlflow,
    models,
    platform,
    predictions,
    spaces,
    texts,
    train,
    users,
)
from serving.cli.output import printable, variable
from serving.core.proxies import bypass_proxies_for_loopback

_EXPECTED = (
    ("serving.errors", "ServingError"),
    ("serving.standalone.launcher", "LaunchFailed"),
    ("serving.core.home", "BadKey"),
    ("registry.errors", "RegistryError"),
    ("db.errors", "DatabaseError"),
    ("db.core.cipher", "BadTextKeys"),
)

app = typer.Typer(
    name="valence",
    help="Versioned sentiment models behind one URL, with stored predictions and search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    platform.up,
    platform.down,
    platform.status,
    logs.logs,
    predictions.predict,
    predictions.similar,
    predictions.feedback,
    analytics.duplicates,
    analytics.second_opinion,
    analytics.corrections,
    analytics.diff,
    analytics.review,
    analytics.topics,
    analytics.drift,
    audit.audit,
):
    app.command()(command)
for name, group in (
    ("models", models.app),
    ("experiments", experiments.app),
    ("keys", keys.app),
    ("users", users.app),
    ("texts", texts.app),
    ("spaces", spaces.app),
    ("db", database.app),
    ("train", train.app),
):
    app.add_typer(group, name=name)
app.command()(platform.settings)
app.command()(mlflow.mlflow)


def _show_release(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        from registry.store.revision import code_revision

        print(f"{version('valence')} ({code_revision()})")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_release, is_eager=True, help="Print the release.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the console script."""
    _use_utf8()
    bypass_proxies_for_loopback(os.environ)
    forget_libpq_variables(os.environ)
    try:
        app()
    except Exception as error:
        line = _explain(error)
        if line is None:
            raise
        print(f"valence: {printable(line)}", file=sys.stderr)
        raise SystemExit(1) from None


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding; end if an argument isn't UTF-8.

    The processes that this one starts inherit the mode.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        # The same program with the same arguments.
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606
    for argument in sys.argv[1:]:
        if not argument.isprintable():
            try:
                argument.encode()
            except UnicodeEncodeError:
                print(f"valence: {argument!a} isn't UTF-8", file=sys.stderr)
                raise SystemExit(2) from None


def _explain(error: Exception) -> str | None:
    """Return one line on what failed and what to do; None for a bug, whose traceback is shown."""
    # The class of a raised error belongs to a loaded module, so no module is imported for the comparison.
    known = tuple(getattr(sys.modules[module], name) for module, name in _EXPECTED if module in sys.modules)
    if isinstance(error, known):
        return " ".join(str(error).split())
    if type(error).__name__ == "ValidationError" and getattr(error, "title", None) == "Settings":
        faults: list[dict[str, Any]] = error.errors()  # type: ignore[attr-defined]
        return "; ".join(
            f"{variable(str(fault['loc'][0]))}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in faults
        )
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return None
