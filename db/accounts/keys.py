"""API keys: digests, roles, owners and ends. Never sees a key itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from db.accounts import audit
from db.connection.repository import Repository, run_sql
from db.core.rows import columns_of, values_of
from db.errors import Duplicate, NotFound
from db.schema import tables

_K = tables.ApiKeyRow


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """A key to be added.

    `digest` is the SHA-256 of the key, `rate_limit` is in texts a second.
    """

    id: UUID
    digest: bytes = field(repr=False)
    role: str
    name: str
    owner_id: UUID | None = None
    rate_limit: float | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Key(NewKey):
    """A stored key, revoked or not."""

    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None

    @property
    def holder_id(self) -> UUID:
        """The owner of this key's predictions: its user, or the key itself."""
        return self.owner_id or self.id


_COLUMNS = columns_of(_K, Key)
_FIND: Final[LiteralString] = (
    "SELECT id, owner_id, digest, role, name, rate_limit, created_at, expires_at, revoked_at, last_used_at "
    "FROM api_keys WHERE id = %s"
)
_TOUCH: Final[LiteralString] = (
    "UPDATE api_keys SET last_used_at = used.at "
    "FROM unnest(CAST(:ids AS uuid[]), CAST(:times AS timestamptz[])) AS used (id, at) "
    "WHERE api_keys.id = used.id AND (last_used_at IS NULL OR last_used_at < used.at)"
)


class KeyRepository(Repository):
    """Keys are never removed: a revoked one stays as a record."""

    async def create(self, new: NewKey, *, actor: UUID | None) -> Key:
        """Add a key; `actor` is the key that asks for it, None the platform at its first start.

        Raises NotFound if the owner isn't a user, Duplicate if the id or the digest exists already.
        """
        async with self._database.begin() as connection:
            try:
                row = (await connection.execute(insert(_K).values(values_of(new)).returning(*_COLUMNS))).one()
            except IntegrityError as error:
                if isinstance(error.orig, psycopg.errors.ForeignKeyViolation):
                    raise NotFound(f"there is no user {new.owner_id}") from error
                if isinstance(error.orig, psycopg.errors.UniqueViolation):
                    raise Duplicate("this key exists already") from error
                raise
            await audit.append(
                connection, actor=actor, action="key.create", subject=str(new.id), detail={"role": new.role}
            )
        return Key(**row._mapping)

    async def find(self, key_id: UUID) -> Key | None:
        """Return the key, revoked or not, or None; each authentication that misses the cache asks for it."""
        async with (
            self._database.hot_read() as connection,
            connection.cursor(row_factory=class_row(Key)) as cursor,
        ):
            await cursor.execute(_FIND, (key_id,), binary=True)
            return await cursor.fetchone()

    async def list(self, *, owner_id: UUID | None = None) -> tuple[Key, ...]:
        """Return all keys, or one owner's, oldest first."""
        query = select(*_COLUMNS).where(_K.id != tables.NIL_ID).order_by(_K.created_at, _K.id)
        if owner_id is not None:
            query = query.where(_K.owner_id == owner_id)
        return await self._list(Key, query)

    async def revoke(self, key_id: UUID, *, actor: UUID | None) -> Key:
        """Revoke a key; if it is revoked already, change nothing. Raises NotFound if there is none."""
        statement = update(_K).where(_K.id == key_id, _K.revoked_at.is_(None)).values(revoked_at=func.now())
        async with self._database.begin() as connection:
            changed = await connection.execute(statement)
            row = (await connection.execute(select(*_COLUMNS).where(_K.id == key_id))).one_or_none()
            if row is None:
                raise NotFound(f"there is no key {key_id}")
            if changed.rowcount:
                await audit.append(connection, actor=actor, action="key.revoke", subject=str(key_id))
        return Key(**row._mapping)

    async def touch(self, used: Mapping[UUID, datetime]) -> None:
        """Record when keys were last used; an earlier time never replaces a later one."""
        async with self._database.begin() as connection:
            await run_sql(connection, _TOUCH, ids=list(used), times=list(used.values()))
