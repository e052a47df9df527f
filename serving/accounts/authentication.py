"""Authentication: API keys, and the check of keys and tokens.

Owns the form of a key, its digest and how long a checked key is trusted. Never reads a header, never stores a key, and
never puts one into a message.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID, uuid4

from db.accounts.keys import Key, KeyRepository
from serving.accounts.tokens import WRONG_TOKEN, Token, TokenSigner
from serving.core.caller import Caller, Role
from serving.core.database_errors import translate_database_errors
from serving.errors import Unauthenticated

PREFIX: Final = "vk_"
_MAX_CACHED: Final = 10_000
_LEAST_SECRET: Final = 32
# Random ones have more: 64 hexadecimal digits nearly always have all sixteen.
_LEAST_DIFFERENT: Final = 10
_WRONG_KEY: Final = "the API key is wrong, expired or revoked"


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedKey:
    """A new key: `text` is shown once, `digest` may be stored."""

    id: UUID
    text: str = field(repr=False)

    @property
    def digest(self) -> bytes:
        return digest_key(self.text)


def generate_key() -> GeneratedKey:
    """Generate a key `vk_<id>_<secret>` with 256 random bits in its secret."""
    key_id = uuid4()
    return GeneratedKey(id=key_id, text=f"{PREFIX}{key_id.hex}_{secrets.token_urlsafe(32)}")


def digest_key(key: str) -> bytes:
    """Return the SHA-256 of a key; its secret is random, so nothing slower is needed."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def parse_key_id(key: str) -> UUID | None:
    """Return the id in a key; None if it hasn't the form of a key."""
    head, _, secret = key.removeprefix(PREFIX).partition("_")
    if not key.startswith(PREFIX) or len(head) != 32 or not secret:
        return None
    try:
        return UUID(hex=head)
    except ValueError:
        return None


def is_weak(key: str) -> bool:
    """Return whether a key that somebody else made can be guessed: its digest protects random secrets alone."""
    secret = key.removeprefix(PREFIX).partition("_")[2]
    return len(secret) < _LEAST_SECRET or len(set(secret)) < _LEAST_DIFFERENT


@dataclass(frozen=True, slots=True)
class _CachedKey:
    key: Key | None
    until: float


class Authenticator:
    """Trusts a checked key for at most `trust_seconds`, so a revoked one is refused after that.

    While the database is down trusted keys still work; any other raises StoreUnavailable.
    """

    def __init__(
        self,
        keys: KeyRepository,
        *,
        tokens: TokenSigner,
        trust_seconds: float = 3,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= trust_seconds <= 5:
            raise ValueError("trust_seconds must be 0 to 5: a revoked key must be refused within 5 seconds")
        self._keys = keys
        self._tokens = tokens
        self._trust_seconds = trust_seconds
        self._now = now
        self._monotonic = monotonic
        self._cache: OrderedDict[UUID, _CachedKey] = OrderedDict()
        self._lookups: dict[UUID, asyncio.Future[Key | None]] = {}
        self._used: dict[UUID, float] = {}
        # Keys that were right once: there are only as many as admins have made.
        self._familiar: set[UUID] = set()

    async def check(self, credential: str) -> Caller:
        """Return the caller who holds a key or a token.

        Raises:
            Unauthenticated: it is malformed, wrong, expired or revoked.
            StoreUnavailable: it can't be checked now.
        """
        return _caller(
            await (
                self._find_by_key(credential)
                if credential.startswith(PREFIX)
                else self._find_by_token(credential)
            )
        )

    def is_familiar(self, credential: str) -> bool:
        """Return whether this names a key that was right before, or is a token, whose check needs no look-up."""
        return not credential.startswith(PREFIX) or parse_key_id(credential) in self._familiar

    async def issue_token(self, client_id: str, key: str) -> Token:
        """Issue a token for a key; `client_id` must be that key's id.

        Raises:
            Unauthenticated, StoreUnavailable: as in `check`.
        """
        record = await self._find_by_key(key)
        try:
            same = UUID(client_id) == record.id
        except ValueError:
            same = False
        if not same:
            raise Unauthenticated(_WRONG_KEY)
        return self._tokens.sign(record.id, record.role)

    def forget(self, key_id: UUID) -> None:
        """Look this key up again at its next use."""
        self._cache.pop(key_id, None)

    async def note_uses(self) -> None:
        """Store the times at which the keys checked since the last call were used."""
        used, self._used = self._used, {}
        if used:
            with translate_database_errors():
                await self._keys.touch({key: datetime.fromtimestamp(at, UTC) for key, at in used.items()})

    async def _find_by_key(self, text: str) -> Key:
        key_id = parse_key_id(text)
        if key_id is None:
            raise Unauthenticated(_WRONG_KEY)
        key = await self._find_valid(key_id)
        if key is None or not hmac.compare_digest(key.digest, digest_key(text)):
            raise Unauthenticated(_WRONG_KEY)
        self._familiar.add(key_id)
        return key

    async def _find_by_token(self, text: str) -> Key:
        claims = self._tokens.read(text)
        key = await self._find_valid(claims.key_id)
        if key is None or key.role != claims.role:
            raise Unauthenticated(WRONG_TOKEN)
        return key

    async def _find_valid(self, key_id: UUID) -> Key | None:
        key = await self._find(key_id)
        now = self._now()
        if key is None or key.revoked_at is not None:
            return None
        if key.expires_at is not None and key.expires_at.timestamp() <= now:
            return None
        self._used[key_id] = now
        return key

    async def _find(self, key_id: UUID) -> Key | None:
        known = self._cache.get(key_id)
        if known is not None and self._monotonic() < known.until:
            return known.key
        lookup = self._lookups.get(key_id)
        if lookup is None:
            lookup = self._lookups[key_id] = asyncio.ensure_future(self._look_up(key_id))
            lookup.add_done_callback(lambda done: self._end_lookup(key_id, done))
        # A caller that leaves must not cancel the lookup for the others.
        return await asyncio.shield(lookup)

    def _end_lookup(self, key_id: UUID, done: "asyncio.Future[Key | None]") -> None:
        self._lookups.pop(key_id, None)
        if not done.cancelled():
            done.exception()

    async def _look_up(self, key_id: UUID) -> Key | None:
        until = self._monotonic() + self._trust_seconds
        with translate_database_errors():
            key = await self._keys.find(key_id)
        self._cache[key_id] = _CachedKey(key, until)
        self._cache.move_to_end(key_id)
        while len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return key


def _caller(key: Key) -> Caller:
    return Caller(key_id=key.id, holder_id=key.holder_id, role=Role(key.role), rate_limit=key.rate_limit)
