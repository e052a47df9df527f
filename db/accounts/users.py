"""Users: the people that predictions are about and that own keys."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import func, insert, select, tuple_
from sqlalchemy.exc import IntegrityError

from db.accounts import audit
from db.connection.repository import Repository
from db.core.cursors import Page, cut_page, decode_uuid, encode_uuid
from db.core.rows import columns_of
from db.errors import Duplicate
from db.schema import tables

_U = tables.UserRow


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """A stored user."""

    id: UUID
    username: str
    email: str
    created_at: datetime


_COLUMNS = columns_of(_U, User)

UserPage: TypeAlias = Page[User]


class UserRepository(Repository):
    """Usernames and e-mail addresses are unique, whatever their case."""

    async def create(self, *, username: str, email: str, actor: UUID | None) -> User:
        """Add a user; `actor` is the key that asks for it.

        Raises Duplicate if the username or the address is taken.
        """
        statement = insert(_U).values(id=uuid4(), username=username, email=email).returning(*_COLUMNS)
        async with self._database.begin() as connection:
            try:
                row = (await connection.execute(statement)).one()
            except IntegrityError as error:
                if isinstance(error.orig, psycopg.errors.UniqueViolation):
                    by_email = error.orig.diag.constraint_name == "uq_users_email"
                    taken = "e-mail address" if by_email else "username"
                    raise Duplicate(f"a user with this {taken} exists already") from error
                raise
            user = User(**row._mapping)
            await audit.append(connection, actor=actor, action="user.create", subject=str(user.id))
        return user

    async def get(self, user_id: UUID) -> User:
        """Return one user. Raises NotFound if there is none."""
        query = select(*_COLUMNS).where(_U.id == user_id)
        return await self._get(User, query, f"there is no user {user_id}")

    async def list(self, *, name: str | None = None, limit: int = 50, cursor: str | None = None) -> UserPage:
        """Return a page of users, newest first; `name` begins their usernames, whatever its case.

        Raises Rejected if no page gave this cursor.
        """
        query = select(*_COLUMNS).order_by(_U.created_at.desc(), _U.id.desc()).limit(limit + 1)
        if name is not None:
            query = query.where(func.starts_with(func.lower(_U.username), func.lower(name)))
        if cursor is not None:
            last = select(_U.created_at, _U.id).where(_U.id == decode_uuid(cursor)).scalar_subquery()
            query = query.where(tuple_(_U.created_at, _U.id) < last)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return cut_page([User(**row._mapping) for row in rows], limit, lambda user: encode_uuid(user.id))

    async def exists(self, user_id: UUID) -> bool:
        """Return whether there is such a user; cheap, because the prediction path asks."""
        async with self._database.hot_read() as connection:
            cursor = await connection.execute("SELECT 1 FROM users WHERE id = %s", (user_id,))
            return await cursor.fetchone() is not None
