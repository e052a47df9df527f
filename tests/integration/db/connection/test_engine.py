"""Connections: time limits, a lost server, the restrictions of a transaction pooler."""

import asyncio
import time
from datetime import timedelta

import psycopg
import pytest

from db.accounts.keys import KeyRepository
from db.connection.engine import Database, Limits
from db.embeddings.segments import Segments
from db.errors import Unavailable
from db.predictions.predictions import PredictionRepository
from db.predictions.submissions import Stored
from db.schema import revisions
from tests.support.interruptible_tasks import InterruptibleDatabase, InterruptibleTask
from tests.support.postgres import SPACE, open_database
from tests.support.repository_tour import use_every_repository
from tests.support.row_factories import new_key, new_submission, new_writer, run_sql, set_defaults

pytestmark = pytest.mark.anyio
FOREIGN = {
    "DateStyle": "German, DMY",
    "TimeZone": "Asia/Kolkata",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-5",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "serializable",
}


async def test_a_statement_or_a_lock_that_takes_too_long_is_unavailable(url: str) -> None:
    limits = Limits(statement_seconds=1.0, lock_seconds=0.2)
    # A busy machine may need longer to make the month.
    async with open_database(url):
        pass
    async with open_database(url, limits=limits) as database:
        key = await new_key(database)
        with pytest.raises(Unavailable):
            await run_sql(database, "SELECT pg_sleep(5)")
        with pytest.raises(Unavailable):
            async with database.hot_read() as connection:
                await connection.execute("SELECT pg_sleep(5)")
        async with await psycopg.AsyncConnection.connect(url) as other:
            await other.execute("LOCK TABLE text_inputs")
            with pytest.raises(Unavailable):
                await new_writer(database).commit([new_submission(key)])
        assert await new_writer(database).commit([new_submission(key)]) == [Stored()]


@pytest.mark.parametrize(("seconds", "renewed"), [(0.0, True), (900.0, False)])
async def test_connections_are_renewed(url: str, seconds: float, renewed: bool) -> None:
    statement = "SELECT pg_backend_pid()"
    limits = Limits(connection_seconds=seconds, writers=1, readers=1, searchers=1, repositories=1)

    async def server_processes(database: Database) -> tuple[object, ...]:
        found: list[object] = []
        for borrow in (database.hot_read, database.hot_write, database.search):
            async with borrow() as connection:
                found.append((await (await connection.execute(statement)).fetchone(),))
        return (*found, (await run_sql(database, statement)))

    async with open_database(url, limits=limits) as database:
        first, second = [await server_processes(database) for _ in range(2)]
    assert [one != other for one, other in zip(first, second, strict=True)] == [renewed] * 4


async def test_the_databases_own_formats_change_nothing(url: str) -> None:
    """`url` is of a database that others set up in their way."""
    await set_defaults(url, FOREIGN)
    assert revisions.upgrade(url) == revisions.head()
    async with open_database(url) as database:
        await use_every_repository(database)
        key = await new_key(database)
        assert key.created_at.utcoffset() == timedelta(0)
        sent = new_submission(key, confidence=0.7534567, scores=(0.1, 0.1465433, 0.7534567))
        await new_writer(database).commit([sent])
        stored = await PredictionRepository(database).get(sent.predictions[0].id)
        assert stored.confidence == 0.7534567
        assert stored.scores["positive"] == 0.7534567


async def test_no_free_connection_is_unavailable_in_time(url: str) -> None:
    limits = Limits(connect_seconds=0.3, readers=1, repositories=1)
    async with open_database(url, limits=limits) as database:
        async with database.hot_read():
            with pytest.raises(Unavailable):
                async with database.hot_read():
                    pass
        async with database.begin():
            with pytest.raises(Unavailable):
                async with database.begin():
                    pass


async def test_every_kind_of_connection_works_again_after_all_were_cut(url: str, database: Database) -> None:
    key = await new_key(database)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    start = time.monotonic()
    for action in (
        lambda: new_writer(database).commit([new_submission(key)]),
        lambda: KeyRepository(database).find(key.id),
        lambda: KeyRepository(database).list(),
    ):
        while True:
            try:
                await action()
                break
            except Unavailable:
                await asyncio.sleep(0.05)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("statement", [1, 2])
async def test_a_connection_that_is_given_up_while_it_is_set_up_is_closed(url: str, statement: int) -> None:
    async def work(database: Database) -> None:
        async with database.begin():
            raise AssertionError("it came through")

    async with open_database(url, kind=InterruptibleDatabase) as database, database.hot_read() as watcher:

        async def sessions() -> int:
            result = "SELECT FROM pg_stat_activity WHERE datname = current_database()"
            return (await watcher.execute(result)).rowcount

        # Takes the only open connection, so that another is opened.
        async with database.begin():
            before = await sessions()
            script = InterruptibleTask(work(database), at=statement)
            await script.wait_until_blocked(watcher)
            assert await sessions() == before + 1
            await script.end(watcher, "cancelled")
            assert script.task.cancelled()
            for _ in range(1000):
                if await sessions() == before:
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError("its session goes on")


async def test_behind_a_transaction_pooler_nothing_is_prepared_or_set(url: str) -> None:
    async with open_database(url, pooler=True) as database:
        key = await new_key(database)
        for _ in range(8):
            assert await new_writer(database).commit([new_submission(key)]) == [Stored()]
            await Segments(database, SPACE).roll(100)
        async with database.hot_write() as connection:
            cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
            assert await cursor.fetchone() == (0,)


async def test_a_database_that_was_not_opened_says_so(url: str) -> None:
    database = Database(url)
    with pytest.raises(RuntimeError, match="open"):
        async with database.hot_write():
            pass
    await database.close()
