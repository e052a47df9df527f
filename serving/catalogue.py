"""The catalogue: which versions exist and which of them answer, as one frozen value.

Published by the fleet, read by every ingress replica; pure, and never half-changed: a new one replaces the old.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from registry.records import VersionRecord
from serving.errors import ModelNotReady, NotFound

CHAMPION = "champion"


class State(StrEnum):
    """What the fleet says of a version."""

    READY = "ready"
    STARTING = "starting"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A registered version and whether it answers; `reason` says why it failed."""

    record: VersionRecord
    state: State
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """All versions of all models at one moment; `revision` grows with every change."""

    revision: int = 0
    models: Mapping[str, Mapping[str, Entry]] = field(default_factory=dict)

    def versions(self, model: str) -> Mapping[str, Entry]:
        """The versions of a model by number.

        Raises:
            NotFound: no such model.
        """
        try:
            return self.models[model]
        except KeyError:
            raise NotFound(f"there is no model {model!r}: GET /v1/models lists them") from None

    def entry(self, model: str, version: str) -> Entry:
        """The named version, whether it answers or not.

        Raises:
            NotFound: no such model or version.
        """
        entry = self.versions(model).get(version)
        if entry is None:
            raise NotFound(f"model {model!r} has no version {version!r}: GET /v1/models/{model} lists them")
        return entry

    def answering(self, model: str, version: str) -> VersionRecord:
        """The named version, if it is ready.

        Raises:
            NotFound: no such model or version.
            ModelNotReady: it is registered, but doesn't answer now.
        """
        entry = self.entry(model, version)
        if entry.state is not State.READY:
            why = f" ({entry.reason})" if entry.reason else ""
            raise ModelNotReady(
                f"version {version} of {model!r} is {entry.state}{why}: try again", retry_after=2
            )
        return entry.record

    def champion(self, model: str) -> VersionRecord:
        """The version that the alias `champion` names.

        Raises:
            NotFound: no such model.
            ModelNotReady: no champion, or it doesn't answer now.
        """
        for version, entry in self.versions(model).items():
            if CHAMPION in entry.record.aliases:
                return self.answering(model, version)
        raise ModelNotReady(
            f"model {model!r} has no champion: set the alias, or name a version", retry_after=5
        )
