"""Migrations: up from empty, down to empty, equal to the tables, safe in parallel; refusals with names."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from db.connection.engine import Database
from db.core import urls
from db.errors import (
    ExtensionTooOld,
    ForeignInstallation,
    Rejected,
    SchemaMismatch,
    ServerTooOld,
    Unavailable,
)
from db.schema import revisions
from tests.support.postgres import KEY, TestServer
from tests.support.row_factories import run_sql

pytestmark = pytest.mark.anyio

_TABLES = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
_FUNCTIONS = "SELECT count(*) FROM pg_proc WHERE proname = 'refuse_change'"


def count_by(url: str, statement: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement).fetchone()
        assert row is not None
        return int(row[0])


def test_up_from_empty_and_down_to_empty_again(server: TestServer) -> None:
    url = server.empty()
    assert revisions.read_current(url) is None
    assert revisions.upgrade(url) == revisions.head()
    assert count_by(url, _TABLES) > 20
    assert revisions.downgrade(url, "base") is None
    assert count_by(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 1
    assert count_by(url, _FUNCTIONS) == 0
    assert revisions.upgrade(url) == revisions.head()


def test_migrations_and_tables_agree(url: str) -> None:
    assert revisions.find_differences(url) == []


def test_a_missing_column_is_a_difference(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE users DROP COLUMN email")
    assert any("email" in difference for difference in revisions.find_differences(url))


def test_several_upgrades_at_once_are_one(server: TestServer) -> None:
    url = server.empty()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(revisions.upgrade, [url] * 4)) == [revisions.head()] * 4


async def test_a_database_without_schema_is_refused_with_what_to_do(server: TestServer) -> None:
    database = Database(server.empty(), installation_key=KEY)
    with pytest.raises(SchemaMismatch, match="valence db upgrade"):
        await database.open()
    await database.close()


async def test_a_release_works_on_under_the_schema_of_a_later_one_but_does_not_touch_it(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    database = Database(url, installation_key=KEY)
    await database.open()
    await database.close()
    assert revisions.wait_until_compatible(url, 0) == "9999"
    with pytest.raises(SchemaMismatch, match="doesn't know"):
        revisions.upgrade(url)


async def test_a_schema_of_an_earlier_release_is_refused(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    database = Database(url)
    with pytest.raises(SchemaMismatch, match="0001"):
        await database.open()
    await database.close()


def test_waiting_for_the_schema_ends_once_it_is_there(server: TestServer) -> None:
    url = server.empty()
    with pytest.raises(SchemaMismatch, match="valence db upgrade"):
        revisions.wait_until_compatible(url, 0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(revisions.wait_until_compatible, url, 30)
        revisions.upgrade(url)
        assert waiting.result() == revisions.head()


def test_waiting_for_a_server_that_does_not_come_fails_with_the_reason() -> None:
    with pytest.raises(Unavailable):
        revisions.wait_until_compatible("postgresql://nobody@127.0.0.1:1/nothing", 0)


async def test_another_installation_key_is_refused(url: str) -> None:
    first, other = Database(url, installation_key=KEY), Database(url, installation_key=KEY[::-1])
    await first.open()
    with pytest.raises(ForeignInstallation, match="VALENCE_INSTALLATION_KEY"):
        await other.open()
    await other.close()
    with pytest.raises(RuntimeError, match="open already"):
        await first.open()
    await first.close()
    await first.open()
    await first.close()


async def test_an_old_server_is_refused_by_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "OLDEST_SERVER", 99)
    database = Database(url)
    with pytest.raises(ServerTooOld, match=r"PostgreSQL 18, Valence needs 99"):
        await database.open()
    await database.close()
    with pytest.raises(ServerTooOld):
        revisions.upgrade(url)


async def test_an_old_pgvector_is_refused_by_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "OLDEST_PGVECTOR", (9, 0, 0))
    database = Database(url)
    with pytest.raises(ExtensionTooOld, match=r"pgvector 0\.8\.5, Valence needs 9\.0\.0"):
        await database.open()
    await database.close()


async def test_no_server_is_unavailable() -> None:
    database = Database("postgresql://valence@/valence?host=/nowhere")
    with pytest.raises(Unavailable):
        await database.open()
    await database.close()


async def test_every_spelling_of_a_url_connects(server: TestServer, url: str) -> None:
    rest = url.partition("://")[2]
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        database = Database(f"{scheme}://{rest}&application_name=mine")
        await database.open()
        await database.close()


def test_a_url_of_another_database_is_refused() -> None:
    with pytest.raises(ValueError, match="postgresql://"):
        Database("sqlite:///x.db")


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET action = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
async def test_the_audit_log_refuses_change(database: Database, statement: str) -> None:
    await run_sql(database, "INSERT INTO audit_log (action, subject) VALUES ('a', 'b')")
    with pytest.raises(Rejected):
        await run_sql(database, statement)
    assert await run_sql(database, "SELECT action FROM audit_log") == [("a",)]
