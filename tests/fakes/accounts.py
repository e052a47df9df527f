"""Fakes of the users, the API keys and the audit log."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from db.accounts.audit import AuditEntry, AuditFilters, AuditPage
from db.accounts.keys import Key, NewKey
from db.accounts.users import User, UserPage
from db.core.cursors import cut_page, decode_row_id, decode_uuid, encode_row_id, encode_uuid
from db.errors import Duplicate, NotFound, Rejected
from tests.fakes.store import FakeStore

_ROLES = ("client", "engineer", "admin")


class FakeUserRepository:
    """The users of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def create(self, *, username: str, email: str, actor: UUID | None) -> User:
        """Add a user."""
        self._store.reach()
        if "\0" in username + email:
            raise Rejected("a name or an address has a NUL")
        for user in self._store.users.values():
            if username.lower() == user.username.lower():
                raise Duplicate("a user with this username exists already")
            if email.lower() == user.email.lower():
                raise Duplicate("a user with this e-mail address exists already")
        user = User(id=uuid4(), username=username, email=email, created_at=datetime.now(UTC))
        self._store.users[user.id] = user
        self._store.append(actor, "user.create", str(user.id))
        return user

    async def get(self, user_id: UUID) -> User:
        """Return one user."""
        self._store.reach()
        if user_id not in self._store.users:
            raise NotFound(f"there is no user {user_id}")
        return self._store.users[user_id]

    async def list(self, *, name: str | None = None, limit: int = 50, cursor: str | None = None) -> UserPage:
        """Return a page of users, newest first."""
        self._store.reach()
        users = sorted(self._store.users.values(), key=lambda user: (user.created_at, user.id), reverse=True)
        if cursor is not None:
            last = self._store.users.get(decode_uuid(cursor))
            users = [] if last is None else users[users.index(last) + 1 :]
        named = [user for user in users if user.username.lower().startswith((name or "").lower())]
        return cut_page(named[: limit + 1], limit, lambda user: encode_uuid(user.id))

    async def exists(self, user_id: UUID) -> bool:
        """Return whether there is such a user."""
        self._store.reach()
        return user_id in self._store.users


class FakeKeyRepository:
    """The keys of a fake store; `lookups` counts the calls of `find`."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.lookups = 0

    async def create(self, new: NewKey, *, actor: UUID | None) -> Key:
        """Add a key."""
        self._store.reach()
        if new.role not in _ROLES or len(new.digest) != 32:
            raise Rejected("the role is unknown, or the digest is no SHA-256")
        if any(new.id == key.id or new.digest == key.digest for key in self._store.keys.values()):
            raise Duplicate("this key exists already")
        if new.owner_id is not None and new.owner_id not in self._store.users:
            raise NotFound(f"there is no user {new.owner_id}")
        key = Key(
            id=new.id,
            owner_id=new.owner_id,
            digest=new.digest,
            role=new.role,
            name=new.name,
            rate_limit=new.rate_limit,
            created_at=datetime.now(UTC),
            expires_at=new.expires_at,
            revoked_at=None,
            last_used_at=None,
        )
        self._store.keys[key.id] = key
        self._store.append(actor, "key.create", str(key.id), {"role": key.role})
        return key

    async def find(self, key_id: UUID) -> Key | None:
        """Return the key, revoked or not, or None."""
        self._store.reach()
        self.lookups += 1
        return self._store.keys.get(key_id)

    async def list(self, *, owner_id: UUID | None = None) -> tuple[Key, ...]:
        """Return all keys, or one owner's, oldest first."""
        self._store.reach()
        return tuple(key for key in self._store.keys.values() if owner_id in (None, key.owner_id))

    async def revoke(self, key_id: UUID, *, actor: UUID | None) -> Key:
        """Revoke a key; if it is revoked already, change nothing."""
        self._store.reach()
        key = self._store.keys.get(key_id)
        if key is None:
            raise NotFound(f"there is no key {key_id}")
        if key.revoked_at is None:
            self._store.append(actor, "key.revoke", str(key_id))
            self._store.keys[key_id] = key = replace(key, revoked_at=datetime.now(UTC))
        return key

    async def touch(self, used: Mapping[UUID, datetime]) -> None:
        """Record when keys were last used; an earlier time never replaces a later one."""
        self._store.reach()
        for key_id, at in used.items():
            key = self._store.keys.get(key_id)
            if key is not None and (key.last_used_at is None or key.last_used_at < at):
                self._store.keys[key_id] = replace(key, last_used_at=at)


class FakeAuditRepository:
    """The audit log of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def add(self, *, action: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Append an action of the platform itself."""
        self._store.reach()
        self._store.append(None, action, subject, detail)

    async def list(
        self, filters: AuditFilters | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> AuditPage:
        """Return a page of entries, newest first."""
        self._store.reach()
        before = None if cursor is None else decode_row_id(cursor)
        entries = [
            entry
            for entry in reversed(self._store.audit)
            if (before is None or entry.id < before) and _matches(entry, filters or AuditFilters())
        ]
        items = tuple(entries[:limit])
        return AuditPage(
            items=items, next_cursor=encode_row_id(items[-1].id) if len(entries) > limit else None
        )


def _matches(entry: AuditEntry, filters: AuditFilters) -> bool:
    return (
        filters.actor in (None, entry.actor)
        and filters.action in (None, entry.action)
        and filters.subject in (None, entry.subject)
        and (filters.since is None or entry.at >= filters.since)
        and (filters.until is None or entry.at < filters.until)
    )
