"""Use cases of administration: users and API keys.

Knows no HTTP and no SQL; every change is audited by the layer below in the transaction that makes it.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import UUID

from db import errors as db_errors
from db.accounts.keys import Key, NewKey
from db.accounts.users import User
from serving.accounts.authentication import Authenticator, generate_key
from serving.core.caller import Caller, Role
from serving.core.database_errors import translate_database_errors
from serving.errors import Invalid, Problem


class UserRecords(Protocol):
    """The stored users, as administration sees them."""

    async def create(self, *, username: str, email: str, actor: UUID | None) -> User:
        """Add a user."""

    async def get(self, user_id: UUID) -> User:
        """One user."""


class KeyRecords(Protocol):
    """The stored keys, as administration sees them."""

    async def create(self, new: NewKey, *, actor: UUID | None) -> Key:
        """Add a key."""

    async def list(self, *, owner_id: UUID | None = None) -> tuple[Key, ...]:
        """All keys, oldest first."""

    async def revoke(self, key_id: UUID, *, actor: UUID | None) -> Key:
        """End a key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySpec:
    """A key as an admin asks for it; `rate_limit` is in texts a second, `user_id` its owner."""

    role: Role
    name: str
    user_id: UUID | None = None
    rate_limit: float | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedKey:
    """A key just stored, with the text that is shown this once."""

    record: Key
    text: str = field(repr=False)


class AccountService:
    """Users and keys change only here, and a key ended here is refused by this replica at once."""

    def __init__(self, *, users: UserRecords, keys: KeyRecords, authenticator: Authenticator) -> None:
        self._users = users
        self._keys = keys
        self._authenticator = authenticator

    async def add_user(self, username: str, email: str, caller: Caller) -> User:
        """Raises Conflict if the name or the address is taken."""
        with translate_database_errors():
            return await self._users.create(username=username, email=email, actor=caller.key_id)

    async def user(self, user_id: UUID) -> User:
        """Raises NotFound."""
        with translate_database_errors():
            return await self._users.get(user_id)

    async def add_key(self, wanted: KeySpec, caller: Caller) -> IssuedKey:
        """Raises Invalid if the owner isn't a user."""
        key = generate_key()
        new = NewKey(
            id=key.id,
            digest=key.digest,
            role=wanted.role,
            name=wanted.name,
            owner_id=wanted.user_id,
            rate_limit=wanted.rate_limit,
            expires_at=wanted.expires_at,
        )
        with translate_database_errors():
            try:
                record = await self._keys.create(new, actor=caller.key_id)
            except db_errors.NotFound as error:
                raise Invalid(
                    "the key's owner is unknown", [Problem(loc=("body", "user_id"), message=str(error))]
                ) from error
        return IssuedKey(record=record, text=key.text)

    async def keys(self) -> tuple[Key, ...]:
        """All keys, ended ones too, oldest first."""
        with translate_database_errors():
            return await self._keys.list()

    async def revoke_key(self, key_id: UUID, caller: Caller) -> None:
        """Raises NotFound; ending a key again changes nothing."""
        with translate_database_errors():
            await self._keys.revoke(key_id, actor=caller.key_id)
        self._authenticator.forget(key_id)
