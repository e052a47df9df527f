"""Tokens: JWTs that represent a key for a while.

Owns their signatures and their claims. Never looks a key up, and never puts a secret into a message.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import jwt

from serving.core.caller import Role
from serving.errors import Unauthenticated

WRONG_TOKEN: Final = "the token is malformed, expired, or its key is revoked: ask POST /v1/token for another"  # noqa: S105
_NOT_A_CREDENTIAL: Final = "this is neither an API key (they begin with vk_) nor a token"
_ISSUER: Final = "valence"
_ALGORITHM: Final = "HS256"
# By how much the clock of the replica that issued a token may be ahead of the one that checks it.
_CLOCK_DIFFERENCE_SECONDS: Final = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A JWT that represents a key, and the seconds it lives."""

    text: str = field(repr=False)
    seconds: int
    role: Role


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenClaims:
    """The key that a valid token represents, and the role that it had then."""

    key_id: UUID
    role: str


def build_audience(installation_key: bytes) -> str:
    """Return the audience of an installation's tokens, which tells nothing about its key."""
    return "valence:" + hmac.digest(installation_key, b"valence token audience", hashlib.sha256).hex()[:32]


class TokenSigner:
    """The first key signs, each one checks; a token that wasn't given here, or not for so long, is refused."""

    def __init__(
        self,
        keys: Sequence[bytes],
        *,
        audience: str,
        seconds: float = 900,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keys = {_name_key(key): key for key in keys}
        self._signing = next(iter(self._keys))
        self._audience = audience
        self._seconds = round(seconds)
        self._now = now

    def sign(self, key_id: UUID, role: str) -> Token:
        """Return a token for a key."""
        issued = int(self._now())
        claims = {
            "iss": _ISSUER,
            "aud": self._audience,
            "sub": str(key_id),
            "role": role,
            "iat": issued,
            "exp": issued + self._seconds,
        }
        name = self._signing
        text = jwt.encode(claims, self._keys[name], algorithm=_ALGORITHM, headers={"kid": name})
        return Token(text=text, seconds=self._seconds, role=Role(role))

    def read(self, text: str) -> TokenClaims:
        """Return what a token says. Raise Unauthenticated unless it was signed here and is valid now."""
        try:
            key = self._keys.get(str(jwt.get_unverified_header(text).get("kid")))
            if key is None:
                raise Unauthenticated(WRONG_TOKEN)
            claims = jwt.decode(
                text,
                key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                audience=self._audience,
                options={
                    "require": ["aud", "iat", "exp", "sub", "role"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            key_id = UUID(claims["sub"])
        except jwt.DecodeError as error:
            # A wrong signature is one, too.
            raise Unauthenticated(WRONG_TOKEN if text.count(".") == 2 else _NOT_A_CREDENTIAL) from error
        except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError) as error:
            raise Unauthenticated(WRONG_TOKEN) from error
        if not self._is_current(claims["iat"], claims["exp"]):
            raise Unauthenticated(WRONG_TOKEN)
        return TokenClaims(key_id=key_id, role=claims["role"])

    def _is_current(self, issued: object, expires: object) -> bool:
        """Return whether a token of these times could have been issued here, and hasn't expired."""
        # Whole numbers alone: JSON as Python reads it has Infinity and NaN, and true is an int there.
        if type(issued) is not int or type(expires) is not int:
            return False
        now = self._now()
        return (
            0 < expires - issued <= self._seconds
            and 0 <= issued <= now + _CLOCK_DIFFERENCE_SECONDS
            and now < expires
        )


def _name_key(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]
