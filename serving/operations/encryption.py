"""The re-encryption of stored values with the keys of the settings. Parses and prints nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

from db.connection.engine import Database
from db.core.cipher import Cipher
from db.errors import Unreadable
from db.privacy.rotation import KeyRotation, RotationResult
from serving.core.connections import build_cipher
from serving.errors import Invalid
from serving.settings import Settings


def encrypt(settings: Settings, url: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Rewrite the values that aren't encrypted as the settings say; return their number and the values of each key.

    Raises:
        Invalid: the settings name no key.
        DatabaseError: the database can't be used, or none of the keys decrypts a value; all others are rewritten then.
    """
    cipher = build_cipher(settings)
    if not cipher.has_keys:
        raise Invalid("VALENCE_TEXT_KEYS is not set: `valence db key` makes a key for it")
    done = asyncio.run(_rotated(url, cipher, say))
    if done.unreadable:
        raise Unreadable(
            f"all values were rewritten but those that can't be decrypted, the first of which is {done.unreadable[0]}"
        )
    return {
        "rewritten": {kind.value: count for kind, count in done.rewritten.items()},
        "held": {
            name: {kind.value: count for kind, count in counts.items()}
            for name, counts in done.stored.items()
        },
        "let_go": list(done.removed_keys),
    }


async def _rotated(url: str, cipher: Cipher, say: Callable[[str], None]) -> RotationResult:
    database = Database(url, cipher=cipher)
    try:
        await database.open()
        return await KeyRotation(database).run(say)
    finally:
        await database.close()
