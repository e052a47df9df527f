"""The errors of the registry. They know nothing of HTTP.

RegistryError
├── BundleError
│   ├── BundleInvalid
│   └── BundleCorrupt
├── NameInvalid
├── NotRegistered
├── RegistryUnavailable
├── CorpusUnavailable
├── ExportFailed
│   └── OutOfSpace
├── ImportRefused
├── TrainingFailed
├── EvidenceInvalid
└── ReportInvalid
"""

from functools import partial
from pathlib import Path


class RegistryError(Exception):
    """The base of all errors of the registry."""


class BundleError(RegistryError):
    """A bundle on disk can't be used."""


class BundleInvalid(BundleError):
    """The manifest of a bundle is missing, malformed, or of a format that this release doesn't read."""


class BundleCorrupt(BundleError):
    """A file of a bundle doesn't have the digest that its manifest names."""

    def __init__(self, *, path: Path, expected: str, actual: str) -> None:
        super().__init__(f"{path} is corrupt: its manifest says sha256 {expected}, it has {actual}")
        self.path = path
        self.expected = expected
        self.actual = actual

    def __reduce__(self) -> tuple[partial["BundleCorrupt"], tuple[()]]:
        """Name the arguments again when a replica's error is unpickled."""
        return partial(BundleCorrupt, path=self.path, expected=self.expected, actual=self.actual), ()


class NameInvalid(RegistryError):
    """A new model can't have this name."""


class NotRegistered(RegistryError):
    """No such model, version, alias or encoder is registered."""


class RegistryUnavailable(RegistryError):
    """MLflow can't be reached or can't answer."""


class CorpusUnavailable(RegistryError):
    """A corpus or held-out set can't be fetched or read, or has another digest than expected."""


class ExportFailed(RegistryError):
    """An encoder can't be turned into a bundle."""


class OutOfSpace(ExportFailed):
    """The vectors of an encoder don't agree with those of the space that it claims."""


class ImportRefused(RegistryError):
    """A foreign model can't be imported, or the mapping of its labels is wrong."""


class TrainingFailed(RegistryError):
    """A training run ended without a usable version."""


class EvidenceInvalid(RegistryError):
    """The stored evidence of a decision can't be parsed."""


class ReportInvalid(RegistryError):
    """A stored report can't be read, or has a format that this release doesn't read."""
