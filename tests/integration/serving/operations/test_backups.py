"""The restore drill: all acknowledged rows come back, from dumps or up to a point in time, or none."""

import asyncio
import hmac
import json
import shutil
import stat
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import psycopg
import pytest
from pydantic import SecretStr

from db.accounts.keys import KeyRepository
from db.backup.archive import Backup, BackupWriter
from db.connection.databases import ensure_sibling, sibling_url
from db.connection.engine import Database
from db.embedded.server import EmbeddedPostgres
from db.errors import BackupDamaged, BackupFailed, BackupTooNew, EmbeddedServerError, NotEmpty
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.predictions.submissions import Stored
from db.schema import revisions
from registry.store.builtin_versions import open_builtin
from registry.store.model_registry import ModelRegistry
from serving.accounts.authentication import Authenticator
from serving.accounts.tokens import TokenSigner, build_audience
from serving.cli import main
from serving.core.home import read_installation_key, read_token_keys
from serving.errors import Conflict, Invalid, Unauthenticated
from serving.operations.backups import backup, base_backup, restore
from serving.settings import Settings
from serving.standalone.launcher import LaunchFailed, up
from tests.support.clock import eventually
from tests.support.postgres import KEY, open_database
from tests.support.row_factories import new_key, new_submission, new_text, new_writer

pytestmark = pytest.mark.anyio

Home = Callable[[], Path]


def quiet(_line: str) -> None: ...


@pytest.fixture
def home() -> Iterator[Home]:
    """Return a factory of homes that other users can enter, like a service's."""
    results: list[Path] = []

    def make() -> Path:
        results.append(Path(tempfile.mkdtemp(prefix="valence-backup-")))
        results[-1].chmod(0o755)
        return results[-1]

    yield make
    for each in results:
        destroy(each)


def destroy(home: Path) -> None:
    shutil.rmtree((home / "postgres").resolve(), ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


def settings_of(home: Path, *, archive: Path | None = None, key: bytes | None = KEY) -> Settings:
    return Settings(home=home, installation_key=SecretStr(key.hex()) if key else None, wal_archive=archive)


@asynccontextmanager
async def run_database(home: Path, archive: Path | None = None) -> AsyncIterator[tuple[str, Database]]:
    """Run the database of a home as the platform does; its process ends as by `valence down`."""
    server = EmbeddedPostgres(home, archive=archive)
    server.start()
    try:
        url = server.create_database("valence")
        ensure_sibling(url, "_mlflow")
        revisions.upgrade(url)
        async with open_database(url) as database:
            yield url, database
    finally:
        server.stop()


def read_rows(url: str, ids: list[UUID]) -> dict[str, Any]:
    """Return every column of these predictions and their related rows, vectors bit by bit."""
    statements = {
        "predictions": "SELECT p::text FROM predictions p WHERE id = ANY(%(ids)s) ORDER BY id",
        "feedback": "SELECT f::text FROM feedback f WHERE prediction_id = ANY(%(ids)s) ORDER BY prediction_id",
        "texts": "SELECT t::text FROM text_inputs t WHERE id IN ("
        "SELECT text_id FROM predictions WHERE id = ANY(%(ids)s)) ORDER BY id",
        "vectors": "SELECT text_id, segment, halfvec_send(embedding) FROM embeddings WHERE text_id IN ("
        "SELECT text_id FROM predictions WHERE id = ANY(%(ids)s)) ORDER BY text_id",
        "keys": "SELECT k::text FROM api_keys k ORDER BY id",
        "audit": "SELECT a::text FROM audit_log a ORDER BY id",
    }
    with psycopg.connect(url) as connection:
        return {name: connection.execute(each, {"ids": ids}).fetchall() for name, each in statements.items()}


def read_schema(url: str) -> dict[str, Any]:
    """Return the schema: columns, constraints, indexes, triggers, and the columns without samples."""
    statements = {
        "columns": "SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, "
        "attstorage, attstattarget FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE attnum > 0 "
        "AND c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace ORDER BY 1, 2",
        "constraints": "SELECT conrelid::regclass::text, conname, contype, convalidated FROM pg_constraint "
        "WHERE conparentid = 0 AND contype <> 'n' AND connamespace = 'public'::regnamespace ORDER BY 1, 2",
        "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
        "triggers": "SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger "
        "WHERE NOT tgisinternal ORDER BY 1, 2",
    }
    with psycopg.connect(url) as connection:
        return {name: connection.execute(each).fetchall() for name, each in statements.items()}


def all_ids(url: str) -> set[UUID]:
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM predictions").fetchall()}


def list_files(folder: Path) -> dict[str, int]:
    """Return the files of a folder with their modes."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_what_was_acknowledged_before_a_backup_under_writes_comes_back(
    home: Home, tmp_path: Path
) -> None:
    first, second = home(), home()
    async with run_database(first) as (url, database):
        registry = ModelRegistry(sibling_url(url, "_mlflow"), artifact_root=first / "artifacts")
        version = await asyncio.to_thread(registry.register, open_builtin("lexicon"), alias="champion")
        key = await new_key(database)
        acknowledged: list[UUID] = []

        async def write() -> list[UUID]:
            sent = new_submission(key, [new_text() for _ in range(20)])
            assert await new_writer(database).commit([sent]) == [Stored()]
            return [each.id for each in sent.predictions]

        for _ in range(10):
            acknowledged += await write()
        for prediction_id in acknowledged[:20]:
            await FeedbackRepository(database).put(
                NewFeedback(
                    prediction_id=prediction_id,
                    holder_id=key.holder_id,
                    key_id=key.id,
                    is_correct=True,
                    comment="said",
                )
            )
        before, shaped = read_rows(url, acknowledged), read_schema(url)
        dumped = asyncio.create_task(asyncio.to_thread(backup, settings_of(first), tmp_path, quiet))
        meanwhile: list[UUID] = []
        while not dumped.done():
            meanwhile += await write()
        result = await dumped
    assert len(meanwhile) > 20
    destroy(first)

    file = Path(result["backup"])
    assert list_files(tmp_path) == {file.name: 0o600}
    restored = restore(settings_of(second, key=None), file, quiet)
    assert restored["revision"] == revisions.head()
    assert (second / "installation.key").read_text() == KEY.hex()
    assert list_files(second).keys() == {"artifacts", "installation.key", "postgres"}
    assert list_files(second)["installation.key"] == 0o600
    async with run_database(second) as (url, database):
        assert read_rows(url, acknowledged) == before
        # Rows that came in between are complete or absent.
        extra = all_ids(url) - set(acknowledged)
        assert extra <= set(meanwhile)
        rows = read_rows(url, list(extra))
        assert {name: len(rows[name]) for name in ("texts", "vectors")} == dict.fromkeys(
            ("texts", "vectors"), len(extra)
        )
        assert read_schema(url) == shaped
        assert await new_writer(database).commit([new_submission(key)]) == [Stored()]
        moved = ModelRegistry(sibling_url(url, "_mlflow"), artifact_root=second / "artifacts")
        champion = await asyncio.to_thread(moved.champion)
        assert champion.digest == version.digest
        assert await asyncio.to_thread(moved.fetch, champion, tmp_path / "cache") == next(
            (second / "artifacts").rglob("bundle")
        )


async def test_a_point_between_two_writes_is_gone_back_to(home: Home) -> None:
    first, archive = home(), home()
    settings = settings_of(first, archive=archive)
    async with run_database(first, archive) as (url, database):
        key = await new_key(database)

        async def write() -> UUID:
            sent = new_submission(key)
            assert await new_writer(database).commit([sent]) == [Stored()]
            return sent.predictions[0].id

        earliest = await write()
        result = await asyncio.to_thread(base_backup, settings, quiet)
        wanted = await write()
        with psycopg.connect(url, autocommit=True) as connection:
            between = connection.execute("SELECT clock_timestamp()").fetchone()[0]
            unwanted = await write()
            last = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()[0]
        before = read_rows(url, [earliest, wanted])
        eventually(lambda: (archive / "wal" / f"{last}.gz").exists(), within=30, what="the log is kept")
    destroy(first)

    base = Path(result["backup"])
    assert base.parent == archive
    second = home()
    restore(settings_of(second), base, quiet, until=between)
    async with run_database(second) as (url, database):
        assert all_ids(url) == {earliest, wanted}
        assert read_rows(url, [earliest, wanted]) == before
        assert await new_writer(database).commit([new_submission(key)]) == [Stored()]
    third = home()
    restore(settings_of(third), base, quiet)
    async with run_database(third) as (url, _):
        assert all_ids(url) == {earliest, wanted, unwanted}
    fourth = home()
    with pytest.raises(EmbeddedServerError, match="before configured recovery target"):
        restore(settings_of(fourth), base, quiet, until=datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(EmbeddedServerError, match="wal doesn't exist"):
        restore(settings_of(fourth), base, quiet, log=fourth)
    assert list(fourth.iterdir()) == []


async def test_copies_and_log_expire_but_not_the_last_copy(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, archive = home(), home()
    settings = settings_of(first, archive=archive)
    async with run_database(first, archive):
        old = await asyncio.to_thread(base_backup, settings, quiet)
        assert [path.name for path in archive.glob("*.backup")] == [Path(old["backup"]).name]
        write_backup(archive / "dump.backup")
        kept = {path.name for path in (archive / "wal").iterdir()}
        assert kept
        moments = (timedelta(days=settings.backup_days + step) for step in (1, 2))
        for number, moment in enumerate(moments):
            clock = _At(datetime.now(UTC) + moment)
            for module in ("db.backup.point_in_time", "db.backup.archive", "serving.operations.backups"):
                monkeypatch.setattr(f"{module}.datetime", clock)
            new = await asyncio.to_thread(base_backup, settings, quiet)
            # The first of them could come from a clock that leapt.
            assert bool(new["expired"]) == bool(number)
    assert new["expired"] > 1
    left = {path.name for path in archive.glob("*.backup")}
    assert Path(old["backup"]).name not in left
    assert {"dump.backup", Path(new["backup"]).name} < left
    assert len(left) == 3
    assert not kept & {path.name for path in (archive / "wal").iterdir()}


class _At:
    """A clock at another time."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self, _zone: Any) -> datetime:
        return self._moment

    isoformat = staticmethod(datetime.isoformat)


def test_a_foreign_copy_that_leads_out_of_the_home_is_refused_and_gives_no_file_away(
    home: Home, tmp_path: Path
) -> None:
    empty, archive = home(), home()
    (archive / "wal").mkdir()
    victim = empty.parent / f"{empty.name}-victim"
    victim.touch(mode=0o600)
    owner = victim.stat().st_uid
    for kind, target in ((tarfile.LNKTYPE, "../../victim"), (tarfile.SYMTYPE, str(victim))):
        link = tarfile.TarInfo("out")
        link.type, link.linkname = kind, target
        with tarfile.open(tmp_path / "base.tar.gz", "w:gz") as base:
            base.addfile(link)
        file = archive / f"{kind.decode()}.backup"
        with BackupWriter(file) as writing:
            writing.add("base.tar.gz", tmp_path / "base.tar.gz")
            writing.add_text("installation.key", KEY.hex())
            writing.finish(contents="base", release="7.0", schema="0001", server="18", artifacts="file:///a")
        with pytest.raises(BackupDamaged, match="isn't a copy of a server's files"):
            restore(settings_of(empty), file, quiet)
        assert list(empty.iterdir()) == []
        assert victim.stat().st_uid == owner
    victim.unlink()


def test_a_key_that_is_none_is_damage(home: Home, tmp_path: Path) -> None:
    for number, key in enumerate(("no hex", "", "00ff")):
        file = write_backup(tmp_path / f"{number}", key=key)
        with pytest.raises(BackupDamaged, match=r"installation\.key"):
            restore(settings_of(home(), key=None), file, quiet)


async def test_a_server_that_keeps_no_log_is_not_copied(home: Home) -> None:
    first, archive = home(), home()
    async with run_database(first):
        with pytest.raises(BackupFailed, match="VALENCE_WAL_ARCHIVE"):
            await asyncio.to_thread(base_backup, settings_of(first, archive=archive), quiet)
        with pytest.raises(Invalid, match="VALENCE_WAL_ARCHIVE"):
            await asyncio.to_thread(base_backup, settings_of(first), quiet)
    assert list(archive.iterdir()) == []


def write_backup(
    target: Path,
    *,
    revision: str = "0001",
    dumped: str = "no dump",
    artifact: str = "a",
    key: str = KEY.hex(),
) -> Path:
    with BackupWriter(target) as writing:
        writing.add_text("database.dump", dumped)
        writing.add_text("artifacts/a", artifact)
        writing.add_text("installation.key", key)
        writing.finish(contents="dump", release="7.0", schema=revision, server="18", artifacts="file:///a")
    return target


def test_what_cant_be_brought_back_is_refused_by_name_and_leaves_an_empty_home(
    home: Home, tmp_path: Path
) -> None:
    empty = home()
    with pytest.raises(BackupTooNew, match=r"9999.*Valence 7\.0"):
        restore(settings_of(empty), write_backup(tmp_path / "new", revision="9999"), quiet)
    with pytest.raises(Conflict, match="VALENCE_INSTALLATION_KEY"):
        restore(settings_of(empty, key=b"x" * 32), write_backup(tmp_path / "foreign"), quiet)
    with pytest.raises(Invalid, match="of one moment"):
        restore(settings_of(empty), tmp_path / "foreign", quiet, until=datetime.now(UTC))
    damaged = write_backup(tmp_path / "damaged", artifact="weights")
    damaged.write_bytes(damaged.read_bytes().replace(b"weights", b"weighty"))
    with pytest.raises(BackupDamaged, match="artifacts/a differs"):
        restore(settings_of(empty), damaged, quiet)
    assert list(empty.iterdir()) == []
    with pytest.raises(BackupFailed, match="pg_restore"):
        restore(settings_of(empty), tmp_path / "foreign", quiet)
    assert list(empty.iterdir()) == []


async def test_what_a_backup_holds_signs_no_token(home: Home, tmp_path: Path) -> None:
    settings = settings_of(home())
    installation = read_installation_key(settings)
    (token_key,) = read_token_keys(settings)
    async with run_database(settings.home) as (_, database):
        key = await new_key(database)
        file = Path((await asyncio.to_thread(backup, settings, tmp_path / "b", quiet))["backup"])
        with closing(Backup(file)) as result:
            # The dumps are of databases, which never have the key.
            assert set(result.manifest.files) == {"database.dump", "registry.dump", "installation.key"}
        held = await asyncio.to_thread(file.read_bytes)
        assert installation.hex().encode() in held
        assert token_key not in held
        assert token_key.hex().encode() not in held
        signer = TokenSigner(read_token_keys(settings), audience=build_audience(installation))
        authenticator = Authenticator(KeyRepository(database), tokens=signer)
        known = (installation, hmac.digest(installation, b"valence token signing key", "sha256"))
        genuine = signer.sign(key.id, key.role)
        assert (await authenticator.check(genuine.text)).key_id == key.id
        claims = jwt.decode(genuine.text, options={"verify_signature": False})
        for forged_by in known:
            text = jwt.encode(claims, forged_by, headers=jwt.get_unverified_header(genuine.text))
            with pytest.raises(Unauthenticated):
                await authenticator.check(text)
    restored = settings_of(home())
    await asyncio.to_thread(restore, restored, file, quiet)
    assert read_token_keys(restored) != (token_key,)


def test_a_home_with_data_is_refused_and_one_half_restored_is_not_served(home: Home, tmp_path: Path) -> None:
    full, file = home(), write_backup(tmp_path / "b")
    (full / "logs").mkdir()
    (full / "artifacts").mkdir()
    with pytest.raises(NotEmpty, match="artifacts"):
        restore(settings_of(full), file, quiet)
    (full / "restore.part").mkdir()
    with pytest.raises(NotEmpty, match="was interrupted"):
        restore(settings_of(full), file, quiet)
    with pytest.raises(LaunchFailed, match="was interrupted"):
        up(settings_of(full))


def test_where_no_database_is_none_is_made(home: Home, tmp_path: Path) -> None:
    empty = home()
    with pytest.raises(Invalid, match="VALENCE_HOME"):
        backup(settings_of(empty), tmp_path / "b", quiet)
    assert list(empty.iterdir()) == list(tmp_path.iterdir()) == []


def test_the_commands_start_the_database_for_themselves(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = home(), home()
    EmbeddedPostgres(first).initialise()
    server = EmbeddedPostgres(first)
    server.start()
    revisions.upgrade(server.create_database("valence"))
    ensure_sibling(server.url("valence"), "_mlflow")
    server.stop()

    def run(at: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("VALENCE_HOME", str(at))
        monkeypatch.setattr(sys, "argv", ["valence", "db", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    code, out, err = run(first, "backup", "-o", str(tmp_path), "--json")
    file = Path(json.loads(out)["backup"])
    assert (code, file.parent, err.splitlines()[0]) == (0, tmp_path, "the platform's database")
    monkeypatch.setattr(sys, "argv", ["valence", "status", "--json"])
    with pytest.raises(SystemExit):
        main()
    noted = json.loads(capsys.readouterr().out)["last_backup"]
    assert (noted["backup"], noted["bytes"]) == (str(file), file.stat().st_size)
    with closing(Backup(file)) as result:
        assert set(result.manifest.files) == {"database.dump", "registry.dump", "installation.key"}
    content = file.read_bytes()
    file.write_bytes(content.replace(b"PGDMP", b"PGDMQ"))
    code, out, err = run(second, "restore", str(file))
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("valence: ")
    assert "database.dump differs" in err
    file.write_bytes(content)
    code, out, _ = run(second, "restore", str(file), "--json")
    assert (code, json.loads(out)["revision"]) == (0, revisions.head())
    assert run(second, "current")[0] == 0
    code, out, _ = run(second, "scrub", "--yes", "--json")
    assert (code, json.loads(out)) == (0, {"tables": True, "log": True})
