"""The use cases of administration: users and API keys.

Knows no HTTP and no SQL; the layer below audits every change in the transaction that makes it.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from db import errors as db_errors
from db.accounts.keys import Key, KeyRepository, NewKey
from db.accounts.users import User, UserPage, UserRepository
from serving.accounts.authentication import Authenticator, generate_key
from serving.core.caller import Caller, Role
from serving.core.database_errors import translate_database_errors
from serving.errors import Invalid, Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySpec:
    """The properties of a key to create; `rate_limit` is in texts a second, `user_id` its owner."""

    role: Role
    name: str
    user_id: UUID | None = None
    rate_limit: float | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class IssuedKey:
    """A new key with its text, which is shown only once."""

    record: Key
    text: str = field(repr=False)


class AccountService:
    """Creates users and keys, and revokes keys: this replica refuses a revoked key at once."""

    def __init__(self, *, users: UserRepository, keys: KeyRepository, authenticator: Authenticator) -> None:
        self._users = users
        self._keys = keys
        self._authenticator = authenticator

    async def add_user(self, username: str, email: str, caller: Caller) -> User:
        """Create a user. Raises Conflict if the name or the address is taken."""
        with translate_database_errors():
            return await self._users.create(username=username, email=email, actor=caller.key_id)

    async def get_user(self, user_id: UUID) -> User:
        """Return a user. Raises NotFound."""
        with translate_database_errors():
            return await self._users.get(user_id)

    async def list_users(self, *, name: str | None, limit: int, cursor: str | None) -> UserPage:
        """Return a page of users, newest first; `name` begins their usernames. Raises Invalid for another's cursor."""
        with translate_database_errors():
            return await self._users.list(name=name, limit=limit, cursor=cursor)

    async def add_key(self, spec: KeySpec, caller: Caller) -> IssuedKey:
        """Create a key. Raises Invalid if its owner is unknown, or it would never work."""
        if spec.expires_at is not None and spec.expires_at <= datetime.now(UTC):
            raise Invalid(
                "the key would never work",
                [
                    Problem(
                        loc=("body", "expires_at"),
                        message="it lies in the past: name a later time, as in 90d",
                    )
                ],
            )
        key = generate_key()
        new = NewKey(
            id=key.id,
            digest=key.digest,
            role=spec.role,
            name=spec.name,
            owner_id=spec.user_id,
            rate_limit=spec.rate_limit,
            expires_at=spec.expires_at,
        )
        with translate_database_errors():
            try:
                record = await self._keys.create(new, actor=caller.key_id)
            except db_errors.NotFound as error:
                raise Invalid(
                    "the key's owner is unknown", [Problem(loc=("body", "user_id"), message=str(error))]
                ) from error
        return IssuedKey(record=record, text=key.text)

    async def list_keys(self) -> tuple[Key, ...]:
        """Return all keys, oldest first, with the revoked ones."""
        with translate_database_errors():
            return await self._keys.list()

    async def revoke_key(self, key_id: UUID, caller: Caller) -> None:
        """Revoke a key; a second time changes nothing. Raises NotFound."""
        with translate_database_errors():
            await self._keys.revoke(key_id, actor=caller.key_id)
        self._authenticator.forget(key_id)
