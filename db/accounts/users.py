"""Users: the people that predictions are about and that own keys."""

from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from db.accounts import audit
from db.connection.engine import Database
from db.errors import Duplicate, NotFound
from db.schema import tables

_U = tables.UserRow


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """A stored user."""

    id: UUID
    username: str
    email: str
    created_at: datetime


_COLUMNS = [getattr(_U, each.name) for each in fields(User)]


class UserRepository:
    """Usernames and e-mail addresses are unique, whatever their case."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, *, username: str, email: str, actor: UUID | None) -> User:
        """Add a user; `actor` is the key that asks for it.

        Raises:
            Duplicate: the username or the address is taken.
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
        """Return one user.

        Raises:
            NotFound: no such user.
        """
        async with self._database.begin() as connection:
            row = (await connection.execute(select(*_COLUMNS).where(_U.id == user_id))).one_or_none()
        if row is None:
            raise NotFound(f"there is no user {user_id}")
        return User(**row._mapping)

    async def exists(self, user_id: UUID) -> bool:
        """Return whether there is such a user; cheap, because the prediction path asks."""
        async with self._database.hot_read() as connection:
            cursor = await connection.execute("SELECT 1 FROM users WHERE id = %s", (user_id,))
            return await cursor.fetchone() is not None
