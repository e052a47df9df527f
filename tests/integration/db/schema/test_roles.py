"""Owner, application, reader: each does its work, and each forbidden action is tried and refused."""

import json
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg import errors as pg

from db.backup.scrub import scrub
from db.errors import Conflict, NotPermitted, SchemaMismatch
from db.schema import revisions
from db.schema.roles import Login, Role, ensure_roles
from serving.cli import main
from tests.support.postgres import TestServer, open_database
from tests.support.repository_tour import use_every_repository
from tests.support.role_urls import LOGINS, RoleUrls

pytestmark = pytest.mark.anyio


async def test_the_application_does_everything_that_a_platform_asks(role_urls: RoleUrls) -> None:
    async with open_database(role_urls[Role.APPLICATION]) as database:
        await use_every_repository(database)


def test_only_who_owns_the_tables_can_write_them_anew(role_urls: RoleUrls) -> None:
    for role in (Role.APPLICATION, Role.READER):
        with pytest.raises(NotPermitted, match="owner"):
            scrub(role_urls[role], lambda _line: None)
    assert scrub(role_urls[Role.OWNER], lambda _line: None) is False


async def test_the_reader_serves_searches_and_lists(role_urls: RoleUrls) -> None:
    async with open_database(role_urls[Role.APPLICATION], read_url=role_urls[Role.READER]) as database:
        await use_every_repository(database)
        async with database.search() as connection:
            row = await (await connection.execute("SELECT current_user")).fetchone()
            assert row == ("some reader",)


DDL = (
    "DROP TABLE feedback",
    "DROP TABLE embeddings",
    # Its row says that it is in use.
    "SELECT drop_segment(max(id)) FROM segments",
    "DROP SCHEMA public CASCADE",
    "DROP FUNCTION refuse_change() CASCADE",
    "ALTER TABLE predictions ADD COLUMN more text",
    "ALTER TABLE audit_log DISABLE TRIGGER append_only",
    "ALTER TABLE users OWNER TO current_user",
    "ALTER FUNCTION make_month(date) OWNER TO current_user",
    "TRUNCATE text_inputs CASCADE",
    "TRUNCATE audit_log",
    "CREATE TABLE mine (id integer)",
    "CREATE TEMPORARY TABLE mine (id integer)",
    "CREATE VIEW mine AS SELECT 1",
    "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA mine",
    "CREATE INDEX ON predictions (label)",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "CREATE TRIGGER mine BEFORE INSERT ON users EXECUTE FUNCTION refuse_change()",
    'SET ROLE "some owner"',
    "SET SESSION AUTHORIZATION valence",
    "ALTER ROLE valence PASSWORD 'x'",
    "ALTER SYSTEM SET fsync = off",
    "COPY users TO PROGRAM 'cat'",
    "COPY users FROM '/etc/passwd'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT lo_import('/etc/passwd')",
)
HISTORY = (
    "UPDATE audit_log SET action = 'x'",
    "DELETE FROM audit_log",
    "UPDATE decisions SET action = 'x'",
    "DELETE FROM decisions",
    "UPDATE installation SET key_fingerprint = 'x'",
    "DELETE FROM installation",
    "UPDATE alembic_version SET version_num = '0001'",
)
WRITES = (
    "INSERT INTO users (id, username, email) VALUES (gen_random_uuid(), 'x', 'y')",
    "UPDATE text_inputs SET content = 'x'",
    "DELETE FROM feedback",
    "DELETE FROM embeddings",
    "SELECT id FROM text_inputs FOR UPDATE",
    "SELECT make_month('2050-01-01')",
    "SELECT make_segment(99)",
    "SELECT drop_month('2026-01-01')",
    "SELECT merge_words()",
    "SELECT key_fingerprint FROM installation",
    "SELECT digest FROM api_keys",
    "SELECT answer FROM idempotency",
)


def assert_refused(url: str, statement: str, *, writable: bool = False) -> None:
    """Check that a statement is refused, even in a session that lifts its own read-only setting."""
    with psycopg.connect(url, autocommit=True) as connection:
        if writable:
            connection.execute("SET default_transaction_read_only = off")
        try:
            connection.execute(statement.encode())
        except (pg.InsufficientPrivilege, pg.ObjectInUse):
            return
    raise AssertionError(f"not refused: {statement}")


def test_the_application_may_not_change_the_schema_or_the_history(role_urls: RoleUrls) -> None:
    for statement in (*DDL, *HISTORY):
        assert_refused(role_urls[Role.APPLICATION], statement)


def test_the_reader_may_not_write_even_where_its_session_says_it_may(role_urls: RoleUrls) -> None:
    for statement in (*DDL, *HISTORY, *WRITES):
        assert_refused(role_urls[Role.READER], statement, writable=True)


def test_the_owner_migrates_and_has_no_power_over_the_server(role_urls: RoleUrls) -> None:
    revisions.downgrade(role_urls[Role.OWNER], "0004")
    assert revisions.upgrade(role_urls[Role.OWNER]) == revisions.head()
    for statement in ("CREATE ROLE mine", "CREATE DATABASE mine", "ALTER SYSTEM SET fsync = off"):
        assert_refused(role_urls[Role.OWNER], statement)


async def test_what_an_upgrade_makes_anew_is_the_applications_at_once(role_urls: RoleUrls) -> None:
    revisions.downgrade(role_urls[Role.OWNER], "0004")
    revisions.upgrade(role_urls[Role.OWNER])
    async with open_database(role_urls[Role.APPLICATION]) as database:
        await use_every_repository(database)
    assert_refused(role_urls[Role.READER], "SELECT make_segment(99)", writable=True)


def test_again_it_changes_nothing(role_urls: RoleUrls) -> None:
    def state() -> list[object]:
        with psycopg.connect(role_urls.superuser) as connection:
            return connection.execute(
                "SELECT relname, relowner::regrole::text, relacl::text FROM pg_class "
                "WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
            ).fetchall()

    before = state()
    keeping = {role: Login(name=login.name, connections=login.connections) for role, login in LOGINS.items()}
    result = ensure_roles(role_urls.superuser, keeping)
    assert [(each.created, each.has_password) for each in result] == [(False, True)] * 3
    assert state() == before
    with psycopg.connect(role_urls[Role.APPLICATION]):
        pass


def test_limits_stand_on_the_roles(role_urls: RoleUrls) -> None:
    with psycopg.connect(role_urls[Role.APPLICATION]) as connection:
        for name, value in (
            ("statement_timeout", "30s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "1min"),
        ):
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == (value,)
    reader = role_urls[Role.READER]
    with psycopg.connect(reader) as first, psycopg.connect(reader):
        assert first.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(reader)


def test_a_password_is_required_and_only_its_verifier_is_stored(role_urls: RoleUrls) -> None:
    with psycopg.connect(role_urls.superuser) as connection:
        kept = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname LIKE 'some %'").fetchall()
    assert len(kept) == 3
    assert all(verifier.startswith("SCRAM-SHA-256$") for (verifier,) in kept)
    for password in ("wrong", ""):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(role_urls.url("some application", password))
    assert "äpp" not in repr(LOGINS)


def test_only_the_platforms_own_user_is_superuser_without_a_password(role_urls: RoleUrls) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(role_urls.superuser.replace("valence@", "some%20application@"))
    with psycopg.connect(role_urls.superuser) as connection:
        rows = connection.execute(
            "SELECT type, user_name, auth_method FROM pg_hba_file_rules ORDER BY rule_number"
        ).fetchall()
        assert rows == [
            ("local", ["valence"], "peer"),
            ("local", ["valence"], "peer"),
            ("local", ["all"], "scram-sha-256"),
        ]
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


async def test_a_missing_grant_is_reported_with_the_remedy(role_urls: RoleUrls) -> None:
    with psycopg.connect(role_urls.superuser) as connection:
        connection.execute('REVOKE INSERT ON predictions FROM "some application"')
    async with open_database(role_urls[Role.APPLICATION]) as database:
        with pytest.raises(NotPermitted, match="valence db roles"):
            await use_every_repository(database)


def test_the_application_learns_that_only_the_owner_migrates(role_urls: RoleUrls) -> None:
    assert revisions.upgrade(role_urls[Role.APPLICATION]) == revisions.head(), "nothing to do"
    revisions.downgrade(role_urls[Role.OWNER], "0004")
    with pytest.raises(NotPermitted, match="owner"):
        revisions.upgrade(role_urls[Role.APPLICATION])


def test_a_powerful_role_is_not_taken_for_one_of_these(server: TestServer, url: str) -> None:
    logins = {**LOGINS, Role.READER: Login(name="valence", connections=1)}
    with pytest.raises(Conflict, match="valence"):
        ensure_roles(url, logins)


def test_a_database_without_the_schema_is_refused(server: TestServer) -> None:
    with pytest.raises(SchemaMismatch, match="valence db upgrade"):
        ensure_roles(server.empty(), LOGINS)


def test_only_who_owns_the_schema_makes_roles(role_urls: RoleUrls) -> None:
    with pytest.raises(NotPermitted):
        ensure_roles(role_urls[Role.APPLICATION], LOGINS)


def test_an_administrator_who_is_no_superuser_makes_them_too(server: TestServer) -> None:
    """On managed servers the administrator can create roles, and owns its database."""
    superuser = server.empty()
    with psycopg.connect(superuser, autocommit=True) as connection:
        # Only a superuser can do this.
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE ROLE administrator LOGIN CREATEROLE CREATEDB PASSWORD 'a'")
        connection.execute(
            psycopg.sql.SQL("ALTER DATABASE {} OWNER TO administrator").format(
                psycopg.sql.Identifier(connection.info.dbname)
            )
        )
    role_urls = RoleUrls(server, superuser)
    mine = role_urls.url("administrator", "a")
    revisions.upgrade(mine)
    names = {
        role: Login(name=f"managed_{role}", password="m", connections=login.connections)
        for role, login in LOGINS.items()
    }
    assert [each.created for each in ensure_roles(mine, names)] == [True] * 3
    assert [each.created for each in ensure_roles(mine, names)] == [False] * 3
    assert_refused(role_urls.url("managed_application", "m"), "DROP TABLE users")
    assert revisions.upgrade(role_urls.url("managed_owner", "m")) == revisions.head()


def test_the_command_makes_them_with_passwords_from_environment_and_files(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    server: TestServer,
) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("VALENCE_APPLICATION_PASSWORD", "from the environment")
    monkeypatch.setenv("VALENCE_READER_PASSWORD_FILE", str(tmp_path / "secret"))
    arguments = ["--owner", "cli_owner", "--application", "cli_app", "--reader", "cli_reader"]
    monkeypatch.setattr(
        sys, "argv", ["valence", "db", "roles", *arguments, "--connections", "1", "2", "3", "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    result = json.loads(capsys.readouterr().out)["roles"]
    assert [(each["role"], each["name"], each["connections"], each["password"]) for each in result] == [
        ("owner", "cli_owner", 1, False),
        ("application", "cli_app", 2, True),
        ("reader", "cli_reader", 3, True),
    ]
    role_urls = RoleUrls(server, url)
    for name, password in (("cli_app", "from the environment"), ("cli_reader", "from a file")):
        with psycopg.connect(role_urls.url(name, password)):
            pass
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(role_urls.url("cli_owner", ""))
