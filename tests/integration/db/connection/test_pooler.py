"""A real PgBouncer in transaction mode between the platform and its database, and TLS to it."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from pydantic import SecretStr

from db.backup.dump import dump, load
from db.backup.scrub import scrub
from db.connection.databases import require_reachable
from db.connection.engine import Database, Limits
from db.errors import Unavailable, Unsuitable
from db.experiments.experiments import ExperimentRepository, NewExperiment
from db.experiments.traffic import TrafficFeed
from db.predictions.submissions import Stored
from db.schema import revisions
from db.schema.roles import Login, Role, ensure_roles
from serving.settings import Settings
from serving.standalone.supervisor import Supervisor
from tests.support.certificates import Authority
from tests.support.pgbouncer import Pooler, pgbouncer
from tests.support.postgres import TestServer, open_database
from tests.support.repository_tour import use_every_repository
from tests.support.row_factories import new_key, new_submission, new_writer, set_defaults

pytestmark = pytest.mark.anyio

PASSWORDS = {"valence_owner": "owner's", "valence_app": "app's", "valence_reader": "reader's"}
LOGINS = {
    role: Login(name=name, password=password, connections=40)
    for role, (name, password) in zip(Role, PASSWORDS.items(), strict=True)
}
NEW = NewExperiment(model="sentiment", champion="2", challenger="3", share=0.5, shadow=False, salt="s")


@pytest.fixture(scope="module")
def pooler(server: TestServer) -> Iterator[Pooler]:
    with pgbouncer(server.server, PASSWORDS) as running:
        yield running


@pytest.fixture
def name(url: str) -> str:
    """Return the database's name, once the roles can use it."""
    ensure_roles(url, LOGINS)
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])


@pytest.fixture
def pooled(pooler: Pooler, name: str) -> str:
    return pooler.url("valence_app", name)


def direct(server: TestServer, name: str, user: str = "valence_app") -> str:
    """Return the URL that bypasses the pooler, with the same password."""
    return f"postgresql://{user}:{quote(PASSWORDS[user])}@/{name}?host={quote(str(server.server.sockets))}"


@asynccontextmanager
async def follow_experiments(
    database: Database, *, poll: float
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Give a function that waits for the next number of running experiments; the feed's connection is closed."""
    async with aclosing(TrafficFeed(database, poll=poll).changes()) as changes:

        async def next_number() -> int:
            async with asyncio.timeout(10):
                return len(await anext(changes))

        yield next_number


async def test_everything_that_a_platform_asks_goes_through_a_transaction_pooler(pooled: str) -> None:
    async with open_database(pooled, limits=Limits(writers=4)) as database:
        for _ in range(3):
            await use_every_repository(database)


async def test_times_are_read_through_a_pooler_whatever_the_databases_own_formats_are(
    url: str, pooled: str
) -> None:
    await set_defaults(
        url, {"DateStyle": "German, DMY", "TimeZone": "Asia/Kolkata", "client_encoding": "LATIN1"}
    )
    async with open_database(pooled) as database:
        await use_every_repository(database)
        assert (await new_key(database)).created_at.utcoffset() == timedelta(0)


async def test_two_platforms_share_the_poolers_connections(pooled: str) -> None:
    async with open_database(pooled) as first, open_database(pooled) as second:
        keys = [await new_key(each) for each in (first, second)]
        for _ in range(10):
            outcomes = await asyncio.gather(
                *(
                    new_writer(each).commit([new_submission(key)])
                    for each, key in zip((first, second), keys, strict=True)
                    for _ in range(4)
                )
            )
            assert outcomes == [[Stored()]] * 8


async def test_each_connection_finds_out_whether_its_session_is_its_own(
    url: str, server: TestServer, name: str, pooled: str
) -> None:
    for way, prepares in ((pooled, None), (direct(server, name), 2), (url, 2)):
        async with open_database(way) as database:
            async with database.hot_write() as connection:
                assert connection.prepare_threshold == prepares
            async with database.search() as connection:
                assert connection.prepare_threshold == prepares


def test_what_sets_its_session_is_refused_behind_a_pooler_before_it_sets_anything(
    pooler: Pooler, name: str, tmp_path: Path
) -> None:
    """pg_dump empties the search path, and the next client of the same session would find no table."""
    owner = pooler.url("valence_owner", name)
    for use in (
        lambda: dump(owner, tmp_path / "dump"),
        lambda: load(owner, tmp_path / "dump"),
        lambda: scrub(owner, lambda _line: None),
    ):
        with pytest.raises(Unsuitable, match="DATABASE_DIRECT_URL"):
            use()
    with psycopg.connect(owner, prepare_threshold=None) as connection:
        assert connection.execute("SHOW search_path").fetchone() == ('"$user", public',)


def test_a_platform_whose_mlflow_would_live_behind_a_pooler_is_refused_at_start(
    pooled: str, tmp_path: Path
) -> None:
    supervisor = Supervisor(Settings(home=tmp_path, database_url=SecretStr(pooled), mlflow_tracking_uri=None))
    with pytest.raises(Unsuitable, match=r"MLflow needs .*DATABASE_DIRECT_URL"):
        supervisor._prepare({})


async def test_timeouts_come_from_the_role_behind_a_pooler(pooled: str) -> None:
    async with open_database(pooled) as database, database.hot_read() as connection:
        for setting, value in (
            ("statement_timeout", "30s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "1min"),
        ):
            row = await (await connection.execute("SELECT current_setting(%s)", (setting,))).fetchone()
            assert row == (value,)


async def test_notices_come_over_the_direct_url(server: TestServer, name: str, pooled: str) -> None:
    # By NOTIFY alone: the poll comes after an hour.
    async with (
        open_database(pooled, direct_url=direct(server, name)) as database,
        follow_experiments(database, poll=3600) as next_number,
    ):
        assert await next_number() == 0
        experiment = await ExperimentRepository(database).create(NEW, actor=None)
        assert await next_number() == 1
        await ExperimentRepository(database).stop(experiment.id, actor=None, reason="over")
        assert await next_number() == 0


async def test_without_a_direct_url_traffic_is_polled(pooled: str) -> None:
    async with open_database(pooled) as database, follow_experiments(database, poll=0.05) as next_number:
        assert await next_number() == 0
        await ExperimentRepository(database).create(NEW, actor=None)
        assert await next_number() == 1


async def test_a_direct_url_that_leads_nowhere_leaves_the_asking(pooled: str) -> None:
    async with (
        open_database(pooled, direct_url="postgresql://nobody@127.0.0.1:1/nothing") as database,
        follow_experiments(database, poll=3600) as next_number,
    ):
        assert await next_number() == 0
        await ExperimentRepository(database).create(NEW, actor=None)
        assert await next_number() == 1


def test_the_schema_migrates_through_a_pooler_and_past_it(
    server: TestServer, pooler: Pooler, name: str
) -> None:
    for way in (pooler.url("valence_owner", name), direct(server, name, "valence_owner")):
        revisions.downgrade(way, "0004")
        assert revisions.upgrade(way) == revisions.head()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def encrypted(server: TestServer, authority: Authority) -> Iterator[Pooler]:
    key, certificate = authority.certify("localhost")
    # In session mode, as without a pooler: MLflow prepares its statements.
    lines = {"pool_mode": "session", "default_pool_size": "40"}
    lines |= {"client_tls_sslmode": "require", "client_tls_protocols": "secure"}
    files = {"client_tls_key_file": key, "client_tls_cert_file": certificate}
    with pgbouncer(server.server, PASSWORDS, lines=lines, files=files) as running:
        yield running


async def test_every_connection_checks_the_servers_certificate(
    encrypted: Pooler, name: str, authority: Authority
) -> None:
    url = encrypted.url("valence_app", name, sslmode="verify-full", sslrootcert=str(authority.certificate))
    async with open_database(url, read_url=url, direct_url=url) as database:
        for kind in (database.hot_write, database.hot_read, database.search):
            async with kind() as connection:
                assert connection.pgconn.ssl_in_use
        async with database.begin() as connection:
            raw = await connection.get_raw_connection()
            assert raw.driver_connection is not None
            assert raw.driver_connection.pgconn.ssl_in_use
        async with follow_experiments(database, poll=0.05) as next_number:
            assert await next_number() == 0
        await use_every_repository(database)
    require_reachable(url)
    assert revisions.read_current(url) == revisions.head()
    owner = encrypted.url(
        "valence_owner", name, sslmode="verify-full", sslrootcert=str(authority.certificate)
    )
    assert revisions.upgrade(owner) == revisions.head()


@pytest.mark.parametrize("flaw", ["another authority", "another name", "no encryption"])
async def test_a_server_that_cannot_prove_itself_is_refused_with_the_reason(
    encrypted: Pooler, name: str, authority: Authority, tmp_path: Path, flaw: str
) -> None:
    right = str(authority.certificate)
    wrong = str(Authority.create(tmp_path).certificate)
    url, reason = {
        "another authority": (
            encrypted.url("valence_app", name, sslmode="verify-full", sslrootcert=wrong),
            "certificate verify failed",
        ),
        "another name": (
            encrypted.url("valence_app", name, sslmode="verify-full", sslrootcert=right).replace(
                "@localhost:", "@127.0.0.1:"
            ),
            "does not match host name",
        ),
        "no encryption": (encrypted.url("valence_app", name, sslmode="disable"), "SSL required"),
    }[flaw]
    database = Database(url)
    with pytest.raises(Unavailable, match=reason):
        await database.open()
    await database.close()
    for ask in (revisions.read_current, require_reachable):
        with pytest.raises(Unavailable, match=reason):
            ask(url)


def test_mlflow_reaches_its_database_by_the_same_certificate(
    server: TestServer, encrypted: Pooler, name: str, authority: Authority, tmp_path: Path
) -> None:
    with psycopg.connect(server.server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}_mlflow OWNER valence_owner")
    url = encrypted.url(
        "valence_owner", f"{name}_mlflow", sslmode="verify-full", sslrootcert=str(authority.certificate)
    )
    program = (
        "import sys; from pathlib import Path; from registry.store.model_registry import ModelRegistry; "
        "print(ModelRegistry(sys.argv[1], artifact_root=Path(sys.argv[2])).models())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, url.replace("postgresql://", "postgresql+psycopg://"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
