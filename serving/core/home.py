"""The home of an installation: the paths in it, and its secrets: installation key, token key and first admin key.

Each secret is a file of mode 0600 that is written once and never changed. Never logs or prints what it holds.
"""

import os
import secrets
from pathlib import Path

from serving.settings import Settings

_KEY_BYTES = 32


class BadKey(ValueError):
    """The installation key or a token key can't be used; the message says what to do."""


class Home:
    """The paths in the folder of one installation."""

    def __init__(self, root: Path) -> None:
        # The secrets.
        self.admin_key = root / "admin.key"
        self.installation_key = root / "installation.key"
        # In no backup: whoever has it can make tokens.
        self.token_key = root / "token.key"
        # What lets a process speak to this home's Ray.
        self.ray_token = root / "ray.token"
        # A folder that exists while a restore into this home is under way.
        self.restore_mark = root / "restore.part"
        # The registry's artifacts; bundles that are being built; bundles that were fetched from the registry.
        self.artifacts = root / "artifacts"
        self.build = root / "build"
        self.cache = root / "cache"
        # The embedded server's files, or a link to them.
        self.postgres = root / "postgres"
        self.logs = root / "logs"
        # The log of the platform's processes, unless a setting names another file.
        self.platform_log = self.logs / "platform.log"
        # The file in which the supervisor says what it is doing, and the one that it locks while it lives.
        self.platform_state = root / "platform.json"
        self.platform_lock = root / "platform.lock"
        # What the process of Serve tells those who wait for the platform.
        self.serve_report = root / "serve.json"
        # What the supervisor's children do while the platform starts.
        self.start_steps = root / "steps"
        # When the last backup was written, and where to.
        self.last_backup = root / "backup.json"

    def champion_encoder(self, space: str) -> Path:
        """Return the file that names the champion's encoder, because asking the registry takes MLflow seconds."""
        return self.build / f"{space}.json"


def read_installation_key(settings: Settings) -> bytes:
    """Return the key behind text ids: from the settings, else from the home, which gets one if it has none.

    Raises:
        BadKey: it isn't hexadecimal, or shorter than 32 bytes.
    """
    if settings.installation_key is not None:
        return parse_key(settings.installation_key.get_secret_value(), "VALENCE_INSTALLATION_KEY")
    return _keep_key(Home(settings.home).installation_key)


def read_token_keys(settings: Settings) -> tuple[bytes, ...]:
    """Return the keys of tokens, the signing one first: from the settings, else the one of the home, which gets one.

    Raises:
        BadKey: one isn't hexadecimal, is shorter than 32 bytes, or is given twice.
    """
    if settings.token_keys is not None:
        given = settings.token_keys.get_secret_value().split(",")
        keys = tuple(parse_key(text, "VALENCE_TOKEN_KEYS") for text in given)
        if len(set(keys)) < len(keys):
            raise BadKey("VALENCE_TOKEN_KEYS gives a key twice: remove one")
        return keys
    return (_keep_key(Home(settings.home).token_key),)


def _keep_key(path: Path) -> bytes:
    if not path.exists():
        write_secret(path, secrets.token_hex(_KEY_BYTES))
    return parse_key(path.read_text(), str(path))


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all; an existing file stays.

    The file and its name are on disk when this returns, so that no row can outlive the key it was written under.
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


def parse_key(text: str, where: str) -> bytes:
    """Return the bytes of a key in hex. Raises BadKey, naming `where`, as above."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        raise BadKey(f"{where} is not hexadecimal: use `openssl rand -hex 32`") from None
    if len(key) < _KEY_BYTES:
        raise BadKey(f"{where} has {len(key)} bytes: use at least {_KEY_BYTES} (`openssl rand -hex 32`)")
    return key
