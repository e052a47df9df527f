"""Variables of the environment: what programs without need of a secret inherit, and what our own database ignores.

Imports nothing heavy.
"""

import os
from collections.abc import Iterable, MutableMapping
from typing import Final

_HARMLESS: Final = frozenset(
    {"HOME", "LOGNAME", "PATH", "SHELL", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER"}
)
_LIBPQ: Final = "PG"
_DATABASES: Final = ("DATABASE_URL", "MLFLOW_TRACKING_URI")


def select_environment(*names: str, prefixes: Iterable[str] = ()) -> dict[str, str]:
    """Return what a program needs to run, and the variables of these names and prefixes: nothing else, so no secret."""
    begins = tuple(prefixes)
    return {
        name: value
        for name, value in os.environ.items()
        if name in _HARMLESS or name in names or name.startswith(begins)
    }


def forget_libpq_variables(environment: MutableMapping[str, str]) -> None:
    """Remove PGHOST, PGPORT and the like unless a database is named: they are for it, and divert from our own."""
    if any(environment.get(name, "").startswith("postgres") for name in _DATABASES):
        return
    for name in [name for name in environment if name.startswith(_LIBPQ)]:
        del environment[name]
