"""Encryption of what people wrote, by AES-256-GCM.

Each value is bound to its location, which names the row that holds it (docs/decisions/0010). Owns the keys, the sealed
form and the locations. Never reads or writes the database.
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from typing import Final, Self
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from db.errors import Unreadable

# Comes before the keys in a setting that encrypts nothing new.
PLAIN: Final = "plain"
_VARIABLE: Final = "VALENCE_TEXT_KEYS"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_FORM: Final = 1
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class BadTextKeys(ValueError):
    """VALENCE_TEXT_KEYS can't be used; the message never quotes a key."""


class Cipher:
    """The first key seals, every key opens; without keys nothing is sealed or opened.

    A sealed value is: the form (a byte, 1), the length of the key's id (a byte), the id, 12 random bytes, ciphertext,
    16 bytes of tag. The tag covers all of it and the location, which names the row, so a moved value can't be opened.
    If `seals` is False, values are opened but no longer sealed.
    """

    def __init__(self, keys: Mapping[str, bytes] | None = None, *, seals: bool = True) -> None:
        keys = keys or {}
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self.fingerprints: Mapping[str, bytes] = {key_id: _fingerprint(key) for key_id, key in keys.items()}
        self.sealing_key: str | None = next(iter(keys), None) if seals else None
        self.prefix: bytes | None = None if self.sealing_key is None else _prefix(self.sealing_key)

    @classmethod
    def parse(cls, setting: str) -> Self:
        """Return the cipher of `id:base64,id:base64,…`, keys of 32 bytes; after a leading `plain` it seals nothing.

        Raises BadTextKeys if the setting has another form.
        """
        parts = [part.strip() for part in setting.split(",")] if setting.strip() else []
        seals = parts[:1] != [PLAIN]
        keys: dict[str, bytes] = {}
        for number, part in enumerate(parts, start=1):
            if number == 1 and not seals:
                continue
            key_id, key = _parse_key(part, number)
            if key_id in keys:
                raise BadTextKeys(f"{_VARIABLE} gives two keys with the id {key_id}: give each its own id")
            if key in keys.values():
                raise BadTextKeys(f"{_VARIABLE} gives the key {key_id} twice, under two ids: remove one")
            keys[key_id] = key
        if not seals and not keys:
            raise BadTextKeys(
                f"{_VARIABLE} says `{PLAIN}` but gives no key to decrypt with: unset it instead"
            )
        return cls(keys, seals=seals)

    @property
    def has_keys(self) -> bool:
        """Whether there is any key."""
        return bool(self._ciphers)

    def seal(self, location: str, value: bytes) -> bytes | None:
        """Return the sealed value for its location, or None if nothing is sealed."""
        if self.sealing_key is None or self.prefix is None:
            return None
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self.sealing_key].encrypt(nonce, value, self.prefix + location.encode())
        return self.prefix + nonce + sealed

    def open(self, location: str, sealed: bytes) -> bytes:
        """Return the value that was sealed for this location.

        Raises Unreadable if the key is missing, or the value was changed or moved here.
        """
        where = location.partition("\0")[0]
        if len(sealed) < 2 or sealed[0] != _FORM:
            raise Unreadable(
                f"{where} is stored in a form that this release doesn't know: use a later release"
            )
        end = 2 + sealed[1]
        key_id = sealed[2:end].decode("ascii", "replace")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise Unreadable(f"{where} is encrypted under the key {key_id}, which {_VARIABLE} doesn't give")
        prefix, nonce, rest = sealed[:end], sealed[end : end + _NONCE_BYTES], sealed[end + _NONCE_BYTES :]
        try:
            if len(rest) < _TAG_BYTES:
                raise InvalidTag
            return cipher.decrypt(nonce, rest, prefix + location.encode())
        except InvalidTag:
            raise Unreadable(
                f"{where} isn't what was encrypted there under the key {key_id}: it was changed, or moved here"
            ) from None

    def read(self, location: str, plain: str, sealed: bytes | None) -> str:
        """Return the text of a row from whichever of its two columns holds it; raise as `open` does."""
        return plain if sealed is None else self.open(location, sealed).decode()


def text_location(text_id: UUID) -> str:
    """Return the location of a text."""
    return f"text {text_id}"


def comment_location(prediction_id: UUID, holder_id: UUID) -> str:
    """Return the location of a comment."""
    return f"comment {prediction_id} {holder_id}"


def answer_location(holder_id: UUID, route: str, key: str) -> str:
    """Return the location of a stored answer; no column holds a NUL, so locations differ."""
    return f"answer {holder_id}\0{route}\0{key}"


def generate_text_key(key_id: str) -> str:
    """Return a new key in the setting's form, `id:base64`. Raises BadTextKeys if the id is malformed."""
    _require_id(key_id, f"{key_id!r} can't be the id of a key")
    return f"{key_id}:{base64.b64encode(os.urandom(_KEY_BYTES)).decode()}"


def _parse_key(part: str, number: int) -> tuple[str, bytes]:
    key_id, colon, text = part.partition(":")
    where = f"{_VARIABLE}, key {number}"
    if not colon:
        raise BadTextKeys(f"{where}: there is no `id:` (`valence db key` makes a key in the right form)")
    _require_id(key_id, where)
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadTextKeys(f"{where}: the part after `{key_id}:` is not base64") from None
    if len(key) != _KEY_BYTES:
        raise BadTextKeys(f"{where}: {key_id} has {len(key)} bytes instead of {_KEY_BYTES}")
    return key_id, key


def _require_id(key_id: str, where: str) -> None:
    if key_id == PLAIN or not _ID.fullmatch(key_id):
        raise BadTextKeys(
            f"{where}: an id is 1 to 32 letters, digits, dots, dashes and underscores, and isn't `{PLAIN}`"
        )


def _prefix(key_id: str) -> bytes:
    return bytes([_FORM, len(key_id)]) + key_id.encode()


def _fingerprint(key: bytes) -> bytes:
    return hmac.digest(key, b"valence text key fingerprint", hashlib.sha256)[:16]
