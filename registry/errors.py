"""The errors of the registry. They know nothing of HTTP.

RegistryError
├── BundleError
│   ├── BundleInvalid
│   └── BundleCorrupt
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

from pathlib import Path


class RegistryError(Exception):
    """The registry could not do what it was asked to do."""


class BundleError(RegistryError):
    """A bundle on disk can't be used."""


class BundleInvalid(BundleError):
    """The manifest of a bundle is missing, malformed, or of a format that this release doesn't read."""


class BundleCorrupt(BundleError):
    """A file of a bundle is not the file that its manifest names."""

    def __init__(self, *, path: Path, expected: str, actual: str) -> None:
        super().__init__(f"{path} is corrupt: its manifest says sha256 {expected}, it has {actual}")
        self.path = path
        self.expected = expected
        self.actual = actual


class NotRegistered(RegistryError):
    """No such model, version, alias or encoder is registered."""


class RegistryUnavailable(RegistryError):
    """MLflow can't be reached or can't answer."""


class CorpusUnavailable(RegistryError):
    """A training corpus can't be fetched or is not the one that is pinned."""


class ExportFailed(RegistryError):
    """An encoder could not be turned into a bundle."""


class OutOfSpace(ExportFailed):
    """The vectors of an encoder don't agree with those of the space that it would claim."""


class ImportRefused(RegistryError):
    """A foreign model isn't what can be imported, or its labels aren't mapped as they must be."""


class TrainingFailed(RegistryError):
    """A training run ended without a usable version."""


class EvidenceInvalid(RegistryError):
    """What is stored as the evidence of a decision isn't evidence."""


class ReportInvalid(RegistryError):
    """A stored report is of a format that this release doesn't read."""
