"""The base of the repositories: their database, and the queries of most of them."""

from typing import Any, LiteralString, TypeVar

from sqlalchemy import CursorResult, Select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.engine import Database
from db.errors import NotFound

Value = TypeVar("Value")


class Repository:
    """Reads and writes the rows of one kind; a value's fields are named like the columns of its query."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _list(self, value: type[Value], query: Select[*tuple[Any, ...]]) -> tuple[Value, ...]:
        async with self._database.begin() as connection:
            return tuple(value(**row._mapping) for row in await connection.execute(query))

    async def _get(self, value: type[Value], query: Select[*tuple[Any, ...]], absent: str) -> Value:
        """Return the only value; raise NotFound with the message `absent` if there is none."""
        values = await self._list(value, query)
        if not values:
            raise NotFound(absent)
        return values[0]

    async def _search(self, statement: LiteralString, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a search, as binary values."""
        async with self._database.search() as connection:
            return await (await connection.execute(statement, parameters, binary=True)).fetchall()


class OneSpaceRepository(Repository):
    """Reads and writes what belongs to one embedding space."""

    def __init__(self, database: Database, *, space: str) -> None:
        super().__init__(database)
        self._space = space


async def run_sql(connection: AsyncConnection, statement: LiteralString, **values: Any) -> CursorResult[Any]:
    """Run a statement with its parameters."""
    return await connection.execute(text(statement), values)
