"""Calls of PostgreSQL's tools: their environment and their last words."""

import os

_UNWANTED = ("PG", "LC_", "LD_")


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would change a tool of PostgreSQL or its language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_UNWANTED)}
    return {**kept, "LANG": "C"}


def last_line(text: str) -> str:
    """Return the last line that isn't blank: PostgreSQL's tools end with the reason of a failure."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"
