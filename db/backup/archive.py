"""Backup files: tar archives that end with a manifest and its digest.

The manifest holds every file's digest. Owns the format: writing, checking and extracting. Knows nothing of databases.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Final, Literal, Self, TypeAlias

from pydantic import AwareDatetime, NonNegativeInt, TypeAdapter, ValidationError

from db.errors import BackupDamaged, BackupTooNew, BackupUnwritable

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
_DIGEST_FILE: Final = "manifest.sha256"
_CHUNK_BYTES: Final = 1 << 20

Contents: TypeAlias = Literal["dump", "base"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackupEntry:
    """A file in a backup: its size in bytes, its SHA-256 in hex."""

    size: NonNegativeInt
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The description of a backup.

    `contents` is `dump` (dumps) or `base` (the server's files), `schema` the revision, `server` PostgreSQL's version,
    `artifacts` the URI of the artifact folder, `created_at` a time before anything was read.
    """

    format: int
    contents: Contents
    created_at: AwareDatetime
    release: str
    schema: str | None
    server: str
    artifacts: str
    files: Mapping[str, BackupEntry]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """The fields that a manifest of any format has."""

    format: int
    release: str = "a later release"


_HEADER: Final = TypeAdapter(_Header)
_MANIFEST: Final = TypeAdapter(Manifest)


class BackupWriter:
    """A backup file that only its owner can read.

    It gets its name only when it is complete and on disk.
    Raises BackupUnwritable if a file with this name exists, or its folder doesn't.
    """

    def __init__(self, target: Path) -> None:
        if target.exists():
            raise BackupUnwritable(f"{target} exists already: name another file")
        if not target.parent.is_dir():
            raise BackupUnwritable(f"{target} can't be written: there is no folder {target.parent}")
        self.target = target
        self._draft = target.with_name(f".{target.name}.{os.getpid()}.part")
        self._file = os.fdopen(os.open(self._draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "w+b")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._files: dict[str, BackupEntry] = {}
        self._started = datetime.now(UTC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._draft.unlink(missing_ok=True)

    def add(self, name: str, path: Path) -> None:
        """Add a file with its present length, whatever is appended meanwhile."""
        with path.open("rb") as file:
            self._add(name, file, os.fstat(file.fileno()).st_size)

    def add_folder(self, name: str, folder: Path) -> None:
        """Add a folder's files, except those that vanish meanwhile."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                try:
                    self.add(f"{name}/{path.relative_to(folder).as_posix()}", path)
                except FileNotFoundError:
                    continue

    def add_text(self, name: str, text: str) -> None:
        """Add a text as a file."""
        content = text.encode()
        self._add(name, io.BytesIO(content), len(content))

    def finish(
        self, *, contents: Contents, release: str, schema: str | None, server: str, artifacts: str
    ) -> Manifest:
        """Write the manifest and give the backup its name."""
        manifest = Manifest(
            format=FORMAT,
            contents=contents,
            created_at=self._started,
            release=release,
            schema=schema,
            server=server,
            artifacts=artifacts,
            files=dict(self._files),
        )
        written = json.dumps(asdict(manifest), indent=1, default=datetime.isoformat)
        self.add_text(MANIFEST, written)
        self.add_text(_DIGEST_FILE, hashlib.sha256(written.encode()).hexdigest())
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        try:
            # A link, not a rename: a file that took the name meanwhile stays.
            os.link(self._draft, self.target)
        except FileExistsError:
            raise BackupUnwritable(f"{self.target} exists already: name another file") from None
        except OSError:
            # The file system has no links.
            os.rename(self._draft, self.target)
        folder = os.open(self.target.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return manifest

    def _add(self, name: str, file: IO[bytes], size: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = size, 0o600, int(self._started.timestamp())
        hashed = _HashingReader(file)
        self._tar.addfile(entry, hashed)
        self._files[name] = BackupEntry(size=size, sha256=hashed.hexdigest())


class Backup:
    """A backup file with its manifest read; `check` compares everything else with the manifest.

    Raises BackupDamaged if the manifest is missing, incomplete or odd, BackupTooNew if the format is a later release's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        try:
            self._tar = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115
            self._entries = {entry.name: entry for entry in self._tar.getmembers()}
            self.manifest = self._read_manifest()
        except tarfile.TarError as error:
            self._file.close()
            raise BackupDamaged(f"{path} is not a backup, or is damaged") from error
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def check(self) -> None:
        """Read everything once. Raises BackupDamaged, naming the file, if one differs from the manifest."""
        known = {*self.manifest.files, MANIFEST, _DIGEST_FILE}
        if strange := sorted(self._entries.keys() - known):
            raise BackupDamaged(f"{self.path} is damaged: {strange[0]} isn't in its manifest")
        for name in self.manifest.files:
            with self.open(name) as file:
                _verify(file, self.manifest.files[name], f"{self.path} is damaged: {name}")

    def extract(self, name: str, to: Path) -> None:
        """Write one of its files to `to`, readable only by its owner; raise BackupDamaged as `check` does."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with (
            self.open(name) as file,
            os.fdopen(os.open(to, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as out,
        ):
            _verify(file, self.manifest.files[name], f"{self.path} is damaged: {name}", out)
            out.flush()
            os.fsync(out.fileno())

    def extract_folder(self, name: str, to: Path) -> None:
        """Write its files under `name` into the folder `to`."""
        for each in self.manifest.files:
            path = PurePosixPath(each)
            if path.parts[0] == name and len(path.parts) > 1:
                self.extract(each, to.joinpath(*path.parts[1:]))

    def text(self, name: str) -> str:
        """Return one of its files as text; what isn't text becomes question marks."""
        with self.open(name) as file:
            return file.read().decode(errors="replace")

    def __contains__(self, name: str) -> bool:
        return name in self.manifest.files

    def open(self, name: str) -> IO[bytes]:
        """Open one of its files for reading; nothing is compared with its digest."""
        entry = self._entries.get(name)
        # A link could lead to another entry, or to none.
        file = self._tar.extractfile(entry) if entry is not None and entry.isreg() else None
        if file is None:
            raise BackupDamaged(f"{self.path} is damaged: {name} is missing")
        return file

    def _read_manifest(self) -> Manifest:
        try:
            with self.open(MANIFEST) as file, self.open(_DIGEST_FILE) as digest:
                written = file.read()
                is_whole = hashlib.sha256(written).hexdigest() == digest.read().decode("ascii", "replace")
        except BackupDamaged:
            raise BackupDamaged(f"{self.path} has no manifest: it was cut off or is damaged") from None
        if not is_whole:
            raise BackupDamaged(f"{self.path} is damaged: {MANIFEST} differs from its digest")
        try:
            header = _HEADER.validate_json(written)
            if header.format > FORMAT:
                raise BackupTooNew(
                    f"{self.path} has format {header.format}, this release knows {FORMAT}: "
                    f"use Valence {header.release} or later"
                )
            manifest = _MANIFEST.validate_json(written)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise BackupDamaged(
                f"{self.path} is damaged, or not one of Valence's: in {MANIFEST}, {where}: {first['msg']}"
            ) from None
        for name in manifest.files:
            if not _is_inside(name):
                raise BackupDamaged(f"{self.path} is damaged: {name!r} isn't a path inside it")
        return manifest


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and "/".join(parts) == name and ".." not in parts and "\0" not in name


class _HashingReader(io.RawIOBase):
    """A file that hashes the bytes read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self._digest.update(chunk)
        return chunk

    def hexdigest(self) -> str:
        """Return the digest of the bytes read so far."""
        return self._digest.hexdigest()


def _verify(file: IO[bytes], expected: BackupEntry, damage: str, out: IO[bytes] | None = None) -> None:
    hashed, size = _HashingReader(file), 0
    try:
        while chunk := hashed.read(_CHUNK_BYTES):
            size += len(chunk)
            if out is not None:
                out.write(chunk)
    except tarfile.TarError as error:
        raise BackupDamaged(f"{damage} can't be read to its end") from error
    if size != expected.size or hashed.hexdigest() != expected.sha256:
        raise BackupDamaged(f"{damage} differs from its digest")
