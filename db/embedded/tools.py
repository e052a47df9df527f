"""Calls of PostgreSQL's tools: their environment and their last words."""

from db.core.environment import select_environment


def clean_environment() -> dict[str, str]:
    """Return an environment that changes no tool of PostgreSQL nor its language, and holds no secret."""
    return select_environment() | {"LANG": "C"}


def last_line(text: str) -> str:
    """Return the last line that isn't blank: PostgreSQL's tools end with the reason of a failure."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"
