"""Backups and their restore: the parts of a backup, and the order in which they are read and written.

Combines databases, artifacts and the installation key. Holds no SQL and no file format.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from db.backup import dump, point_in_time
from db.backup.archive import Backup, BackupWriter, Contents
from db.backup.point_in_time import BaseCopy
from db.connection.databases import ensure_sibling, sibling_url
from db.core.ids import fingerprint
from db.embedded.server import EmbeddedPostgres
from db.errors import AlreadyOwned, BackupDamaged, BackupError, BackupTooNew, NotEmpty
from db.schema import revisions
from serving.core.connections import DATABASE, REGISTRY_SUFFIX
from serving.core.home import BadKey, Home, parse_key, read_installation_key, write_secret
from serving.errors import Conflict, Invalid
from serving.settings import Settings
from serving.standalone.state import PlatformState
from serving.standalone.status import note_backup

SUFFIX: Final = ".backup"
_DATABASE, _REGISTRY, _ARTIFACTS = "database.dump", "registry.dump", "artifacts"
_INSTALLATION_KEY = "installation.key"


@contextmanager
def database(settings: Settings, *, make: bool = False) -> Iterator[str]:
    """Yield the URL of the database; an embedded one that doesn't run is started meanwhile, and created with `make`.

    Raises:
        Invalid: there is no database.
    """
    if (named := settings.schema_url) is not None:
        yield named
        return
    if not make:
        _require_database(settings)
    server = EmbeddedPostgres(settings.home, archive=settings.wal_archive)
    try:
        server.start()
    except AlreadyOwned:
        yield server.url()
        return
    try:
        yield server.create_database(DATABASE)
    finally:
        server.stop()


def backup(settings: Settings, target: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Write a backup to a file, or under a new name into a folder (default: the working directory).

    The platform may run and write meanwhile. The platform's database is read first, then the registry's, then the
    artifacts, so each part holds all that an earlier one names: artifacts are stored before their version, and a
    version before it answers. Each database is read as of one moment.

    Raises:
        Invalid: there is no database.
        BackupError: it can't be written.
    """
    target = _named(target or Path.cwd())
    with database(settings) as url, BackupWriter(target) as writer, _scratch(target.parent) as scratch:
        identity = _revision(url), _key(settings, url)
        say("the platform's database")
        dump.dump(url, scratch / _DATABASE)
        writer.add(_DATABASE, scratch / _DATABASE)
        if settings.mlflow_tracking_uri is None:
            say("MLflow's database")
            dump.dump(sibling_url(url, REGISTRY_SUFFIX), scratch / _REGISTRY)
            writer.add(_REGISTRY, scratch / _REGISTRY)
        else:
            say("MLflow is elsewhere (MLFLOW_TRACKING_URI): back it up there")
        files = _finish(writer, settings, url, "dump", identity, say)
    return _summarise(settings, target, files)


def base_backup(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Copy the embedded server's files into the archive of its WAL, and delete what is older than the backup days.

    Raises:
        Invalid: no archive is set, or there is no embedded database.
        BackupError: it can't be written.
    """
    archive = _archive(settings)
    _require_database(settings)
    archive.mkdir(parents=True, exist_ok=True)
    target = _named(archive)
    with database(settings) as url, BackupWriter(target) as writer, _scratch(archive) as scratch:
        identity = _revision(url), _key(settings, url)
        say("the server's files")
        point_in_time.copy_files(url, scratch / "copy")
        writer.add(point_in_time.BASE, scratch / "copy" / point_in_time.BASE)
        files = _finish(writer, settings, url, "base", identity, say)
    expired = point_in_time.expire(archive, _base_backups(archive), days=settings.backup_days)
    return {**_summarise(settings, target, files), "expired": len(expired)}


def restore(
    settings: Settings,
    file: Path,
    say: Callable[[str], None],
    *,
    until: datetime | None = None,
    log: Path | None = None,
) -> dict[str, Any]:
    """Restore a backup into an empty home, or into the empty databases that the settings name.

    A base backup is restored to the time `until`, or to the end of the WAL in the folder `log` (default: the folder of
    the backup).

    Raises:
        NotEmpty: the home or a database holds data.
        BackupDamaged, BackupTooNew: the backup can't be used; the message names what is wrong with it.
        Conflict: the settings name another installation key.
        Invalid: `until` is given for a backup of dumps, or a base backup for another database than the embedded one.
    """
    home = settings.home.absolute()
    _require_empty(home)
    with closing(Backup(file)) as source:
        _require_usable(settings, source, until)
        say("checking every file")
        source.check()
        key = _same_key(settings, source)
        home.mkdir(parents=True, exist_ok=True)
        mark = Home(home).restore_mark
        mark.mkdir()
        try:
            write_secret(Home(home).installation_key, key)
            say("artifacts")
            source.extract_folder(_ARTIFACTS, _artifacts(settings))
            if source.manifest.contents == "dump":
                _load(settings, source, mark, say)
            else:
                _recover(settings, source, mark, say, until, log or file.parent)
        except BaseException:
            _discard(home)
            raise
        shutil.rmtree(mark)
    manifest = source.manifest
    return {
        "home": str(home),
        "backup": str(file),
        "created_at": manifest.created_at.isoformat(),
        "revision": manifest.schema,
        "files": len(manifest.files),
    }


def _load(settings: Settings, source: Backup, scratch: Path, say: Callable[[str], None]) -> None:
    with database(settings, make=True) as url:
        registry = ensure_sibling(url, REGISTRY_SUFFIX) if _REGISTRY in source else None
        for each in filter(None, (url, registry)):
            if dump.has_tables(each):
                raise NotEmpty("the database holds tables: name an empty one")
        if registry is not None:
            say("MLflow's database")
            source.extract(_REGISTRY, scratch / _REGISTRY)
            dump.load(registry, scratch / _REGISTRY)
            _relocate(settings, source, registry)
        say("the platform's database")
        source.extract(_DATABASE, scratch / _DATABASE)
        dump.load(url, scratch / _DATABASE)
        revisions.upgrade(url)


def _recover(
    settings: Settings,
    source: Backup,
    scratch: Path,
    say: Callable[[str], None],
    until: datetime | None,
    log: Path,
) -> None:
    say(f"the server's files, and the WAL up to {until or 'its end'}")
    source.extract(point_in_time.BASE, scratch / point_in_time.BASE)
    point_in_time.recover(
        settings.home.absolute(),
        scratch / point_in_time.BASE,
        wal_archive=log,
        until=until,
        archive=settings.wal_archive,
    )
    with database(settings) as url:
        _relocate(settings, source, ensure_sibling(url, REGISTRY_SUFFIX))
        revisions.upgrade(url)


def _relocate(settings: Settings, source: Backup, registry: str) -> None:
    old, new = source.manifest.artifacts, _artifacts(settings).as_uri()
    if old != new:
        dump.replace_uri(registry, old, new)


def _require_database(settings: Settings) -> None:
    if settings.database_url is None and not Home(settings.home).postgres.exists():
        raise Invalid(f"{settings.home.absolute()} holds no database: set VALENCE_HOME, or DATABASE_URL")


def _require_empty(home: Path) -> None:
    if PlatformState(home).is_owned():
        raise NotEmpty(f"a platform runs in {home}: choose an empty home")
    there = sorted(path.name for path in home.iterdir() if path.name != "logs") if home.exists() else []
    if Home(home).restore_mark.exists():
        raise NotEmpty(f"a restore into {home} was interrupted: remove the folder and restore again")
    if there:
        raise NotEmpty(f"{home} holds data ({there[0]}): set VALENCE_HOME to an empty folder")


def _require_usable(settings: Settings, source: Backup, until: datetime | None) -> None:
    manifest = source.manifest
    if manifest.schema is not None and not revisions.can_upgrade_from(manifest.schema):
        raise BackupTooNew(
            f"{source.path} has schema revision {manifest.schema}, which this release doesn't know: "
            f"use Valence {manifest.release} or later"
        )
    if manifest.contents == "dump" and until is not None:
        raise Invalid(f"{source.path} holds dumps, which are of one moment: restore a base backup")
    if manifest.contents == "base" and settings.database_url is not None:
        raise Invalid(f"{source.path} holds the embedded server's files: unset DATABASE_URL")


def _same_key(settings: Settings, source: Backup) -> str:
    """Return the backup's installation key, in hex."""
    key = source.text(_INSTALLATION_KEY)
    try:
        secret = parse_key(key, _INSTALLATION_KEY)
    except BadKey:
        raise BackupDamaged(f"{source.path} is damaged: {_INSTALLATION_KEY} isn't a key") from None
    if settings.installation_key is not None and read_installation_key(settings) != secret:
        raise Conflict(
            "VALENCE_INSTALLATION_KEY isn't the key of the backup, whose texts couldn't be recognised: unset it"
        )
    return key


def _revision(url: str) -> str:
    revision = revisions.read_current(url)
    if revision is None:
        raise Invalid("the database holds no schema yet: there is nothing to back up")
    return revision


def _key(settings: Settings, url: str) -> str:
    """Return the installation key, in hex."""
    key = read_installation_key(settings)
    filled = dump.read_key_fingerprint(url)
    if filled is not None and filled != fingerprint(key):
        raise Conflict(
            "the database was filled under another installation key than this home's: "
            "set VALENCE_HOME or VALENCE_INSTALLATION_KEY to its own"
        )
    return key.hex()


def _finish(
    writer: BackupWriter,
    settings: Settings,
    url: str,
    contents: Contents,
    identity: tuple[str, str],
    say: Callable[[str], None],
) -> int:
    """Add the artifacts and the key, then the manifest; return the number of files.

    `identity`: the revision of the schema and the installation key, both read before anything was copied.
    """
    schema, key = identity
    say("artifacts")
    writer.add_folder(_ARTIFACTS, _artifacts(settings))
    writer.add_text(_INSTALLATION_KEY, key)
    manifest = writer.finish(
        contents=contents,
        release=version("valence"),
        schema=schema,
        server=dump.read_server_version(url),
        artifacts=_artifacts(settings).as_uri(),
    )
    return len(manifest.files)


def _artifacts(settings: Settings) -> Path:
    return Home(settings.home.resolve()).artifacts


def _archive(settings: Settings) -> Path:
    if settings.database_url is not None:
        raise Invalid("only the embedded database is copied file by file: use the tools of your server")
    if settings.wal_archive is None:
        raise Invalid("VALENCE_WAL_ARCHIVE isn't set: a copy of the files needs the WAL that follows it")
    return settings.wal_archive.absolute()


def _named(target: Path) -> Path:
    now = datetime.now(UTC)
    return target / f"valence-{now:%Y%m%dT%H%M%SZ}{SUFFIX}" if target.is_dir() else target.absolute()


def _base_backups(folder: Path) -> list[BaseCopy]:
    """Return the base backups in a folder; other files there are ignored."""
    copies = []
    for file in folder.glob(f"*{SUFFIX}"):
        with suppress(BackupError), closing(Backup(file)) as source:
            if source.manifest.contents == "base":
                with source.open(point_in_time.BASE) as base:
                    copies.append(
                        BaseCopy(
                            path=file,
                            begun=source.manifest.created_at,
                            first_segment=point_in_time.read_first_segment(base),
                        )
                    )
    return copies


def _summarise(settings: Settings, target: Path, files: int) -> dict[str, Any]:
    summary = {"backup": str(target), "files": files, "bytes": target.stat().st_size}
    note_backup(settings.home, summary)
    return summary


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Make a temporary folder on the disk of the backup, which has the space."""
    with tempfile.TemporaryDirectory(prefix=".valence-", dir=target) as folder:
        yield Path(folder)


def _discard(home: Path) -> None:
    """Remove the files of a failed restore; the home was empty before."""
    paths = Home(home)
    data = paths.postgres
    shutil.rmtree(data.resolve(), ignore_errors=True)
    if data.is_symlink():
        data.unlink()
    for folder in (paths.artifacts, paths.restore_mark):
        shutil.rmtree(folder, ignore_errors=True)
    paths.installation_key.unlink(missing_ok=True)
