"""A version or an encoder on disk: a folder with a manifest that names and digests every file.

Never holds pickled objects, and never opens a folder whose files differ from its manifest.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Self

from registry.errors import BundleCorrupt, BundleInvalid

FORMAT = 1
LABELS = ("negative", "neutral", "positive")
MANIFEST = "manifest.json"

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BundleKind(StrEnum):
    """The content of a bundle: an encoder, or a version of a model of one of the other kinds."""

    ENCODER = "encoder"
    LEXICON = "lexicon"
    HEAD = "head"
    JOINT = "joint"
    CLASSIFIER = "classifier"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The description of a bundle.

    `encoder` is the identity of an encoder: an encoder bundle's own, or that of the encoder whose states a head
    reads; a joint version brings that encoder as an update of another. Versions with equal identities share replicas.
    `files` maps relative paths to sha256. `settings` configures the runtime of the kind; `metrics` and `provenance`
    record the measures and the origin.
    """

    kind: BundleKind
    name: str
    encoder: str | None = None
    space: str | None = None
    labels: tuple[str, ...] = ()
    temperature: float = 1.0
    files: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The sha256 of the canonical content, which covers every byte of the bundle through `files`."""
        return hashlib.sha256(_canonical(self._content())).hexdigest()

    def dump(self) -> str:
        return json.dumps({**self._content(), "digest": self.digest}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str, *, where: Path) -> Self:
        """Parse a manifest. Raises BundleInvalid, or BundleCorrupt if the content doesn't have its digest."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT:
                raise BundleInvalid(f"{where} has format {raw['format']}; this release reads {FORMAT}")
            manifest = cls(
                kind=BundleKind(raw["kind"]),
                name=str(raw["name"]),
                encoder=raw["encoder"],
                space=raw["space"],
                labels=tuple(raw["labels"]),
                temperature=float(raw["temperature"]),
                files={
                    _checked_path(path, where): _checked_digest(raw["files"][path]) for path in raw["files"]
                },
                settings=dict(raw["settings"]),
                metrics={name: float(value) for name, value in raw["metrics"].items()},
                provenance=dict(raw["provenance"]),
            )
            claimed = _checked_digest(raw["digest"])
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise BundleInvalid(f"{where} isn't a manifest: {exc!r}") from exc
        if manifest.kind is not BundleKind.ENCODER and manifest.labels != LABELS:
            raise BundleInvalid(f"{where} names the labels {manifest.labels} instead of {LABELS}")
        if claimed != manifest.digest:
            raise BundleCorrupt(path=where, expected=claimed, actual=manifest.digest)
        return manifest

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A folder of which every named file was read and has the digest in the manifest."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest names. Raises BundleInvalid for any other."""
        if name not in self.manifest.files:
            raise BundleInvalid(f"{self.path} has no {name}")
        return self.path / name

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder and verify its files. Raises BundleInvalid or BundleCorrupt, naming the file."""
        where = path / MANIFEST
        try:
            text = where.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise BundleInvalid(f"{where} can't be read: {exc}") from exc
        manifest = Manifest.parse(text, where=where)
        for name, expected in manifest.files.items():
            actual = _file_digest(path / name)
            if actual != expected:
                raise BundleCorrupt(path=path / name, expected=expected, actual=actual)
        return cls(path=path, manifest=manifest)

    @classmethod
    def seal(cls, path: Path, manifest: Manifest) -> Self:
        """Digest every file under `path`, write the manifest next to them, and return the bundle."""
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        files = {name: file_digest(path / name) for name in names if name != MANIFEST}
        for name in files:
            # Some libraries write files that only their owner can read, but replicas may run as another user.
            (path / name).chmod(0o644)
        sealed = replace(manifest, files=files)
        (path / MANIFEST).write_text(sealed.dump(), encoding="utf-8")
        return cls(path=path, manifest=sealed)

    def move_to(self, path: Path) -> Self:
        """Move the folder to `path` in one step; keep an equal bundle that is there already."""
        try:
            os.rename(self.path, path)
        except OSError:
            present = type(self).open(path)
            if present.digest != self.digest:
                raise BundleInvalid(f"{path} already holds another bundle, {present.digest}") from None
        return type(self)(path=path, manifest=self.manifest)


@contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`, to be sealed and moved there; removed if it is left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        yield folder


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as exc:
        raise BundleInvalid(f"{path} can't be read: {exc}") from exc


def _canonical(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def _checked_path(name: str, where: Path) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or name != str(path):
        raise BundleInvalid(f"{where} names {name!r}, which isn't a plain path inside the bundle")
    return name


def _checked_digest(digest: object) -> str:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} isn't a sha256")
    return digest
