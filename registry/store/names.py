"""The names that a model may have, the tags of languages, and MLflow's filter for a name."""

import re
from collections.abc import Sequence
from typing import Final

from registry.errors import NameInvalid

MODEL: Final = "sentiment"
CHAMPION: Final = "champion"
ENCODERS: Final = "encoders"

_LONGEST_NAME: Final = 256
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


def require_model_name(name: str) -> None:
    """Raise NameInvalid unless a new model may have this name."""
    if name == ENCODERS:
        raise NameInvalid(f"{ENCODERS} is where the encoders are registered: give the model another name")
    if not name.strip() or name != name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise NameInvalid(
            f"a model's name has 1 to {_LONGEST_NAME} printable characters and no blank at its ends, not {name!r}"
        )


def require_languages(tags: Sequence[str]) -> None:
    """Raise NameInvalid unless each of these looks like a BCP 47 tag."""
    for tag in tags:
        if not _LANGUAGE.fullmatch(tag):
            raise NameInvalid(f"a language is a BCP 47 tag, such as en or pt-BR, not {tag!r}")


def name_filter(model: str) -> str | None:
    """Return MLflow's filter for a name; None, for no filter, if MLflow's language can't quote the name."""
    quote = next((quote for quote in "'\"" if quote not in model), None)
    return None if quote is None else f"name = {quote}{model}{quote}"
