"""What an installation keeps to itself in its home: the installation key and the first admin key.

Both are files of mode 0600 that are made once and never changed. Never logs or prints what is in them.
"""

import os
import secrets
from pathlib import Path

from serving.settings import Settings

ADMIN_KEY = "admin.key"
# In a home while a restore into it is under way.
RESTORE_MARK = "restore.part"
INSTALLATION_KEY = "installation.key"
_BYTES = 32


class BadInstallationKey(ValueError):
    """The installation key can't be used; the message says what to do."""


def read_installation_key(settings: Settings) -> bytes:
    """The key behind text ids and tokens: from the settings, or made once and kept in the home.

    Raises:
        BadInstallationKey: it isn't hexadecimal, or shorter than 32 bytes.
    """
    if settings.installation_key is not None:
        return _parsed(settings.installation_key.get_secret_value(), "VALENCE_INSTALLATION_KEY")
    path = settings.home / INSTALLATION_KEY
    if not path.exists():
        write_secret(path, secrets.token_hex(_BYTES))
    return _parsed(path.read_text(), str(path))


def admin_key_path(settings: Settings) -> Path:
    """Where the first admin key lies."""
    return settings.home / ADMIN_KEY


def write_secret(path: Path, text: str) -> None:
    """Make a file that only its owner can read, whole or not at all; one that exists already stays.

    The file and its name are on disk when this returns, so that no row can outlive the key it was made under.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    finally:
        draft.unlink()
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _parsed(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        raise BadInstallationKey(f"{where} is not hexadecimal: use `openssl rand -hex 32`") from None
    if len(key) < _BYTES:
        raise BadInstallationKey(
            f"{where} has {len(key)} bytes: use at least {_BYTES} (`openssl rand -hex 32`)"
        )
    return key
