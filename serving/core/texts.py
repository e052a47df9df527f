"""The rule for texts: 1 to 20,000 characters after trimming, of any Unicode that PostgreSQL can hold.

It holds for every protocol and for the command line.
"""

MAX_CHARACTERS = 20_000
MAX_BATCH = 1_000
"""The most texts of one request."""


class UnusableText(ValueError):
    """The text can't be predicted or stored; the message says why."""


def clean_text(text: str) -> str:
    """Return the text without the white space around it, as it is predicted and stored.

    Raises:
        UnusableText: it is blank or too long, or holds a NUL or a lone surrogate.
    """
    trimmed = text.strip()
    if not trimmed:
        raise UnusableText("the text is empty or blank: send at least one visible character")
    if len(trimmed) > MAX_CHARACTERS:
        raise UnusableText(
            f"the text has {len(trimmed):,} characters: send at most {MAX_CHARACTERS:,}, or split it"
        )
    if "\x00" in trimmed:
        raise UnusableText("the text holds a NUL character (U+0000): remove it")
    try:
        trimmed.encode()
    except UnicodeEncodeError as error:
        raise UnusableText(
            f"the text holds a lone surrogate at character {error.start}: send well-formed Unicode"
        ) from error
    return trimmed
