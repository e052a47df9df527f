"""Users: the people that predictions are about and that own keys."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from db.accounts import audit
from db.connection.repository import Repository
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

    async def exists(self, user_id: UUID) -> bool:
        """Return whether there is such a user; cheap, because the prediction path asks."""
        async with self._database.hot_read() as connection:
            cursor = await connection.execute("SELECT 1 FROM users WHERE id = %s", (user_id,))
            return await cursor.fetchone() is not None
