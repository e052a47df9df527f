"""The catalog: which versions exist, which of them answer, and which replicas compute them, as one frozen value.

The reconciler publishes it and every ingress replica reads it. It is pure, and a new one replaces the old one whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from registry.store.records import VersionRecord
from serving.errors import ModelNotReady, NotFound

CHAMPION = "champion"


def short_digest(digest: str) -> str:
    """Return the name of an encoder in the names of its replicas and metrics."""
    return digest[:16]


class VersionState(StrEnum):
    """The state of a version, as the reconciler sees it."""

    READY = "ready"
    STARTING = "starting"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """A registered version and whether it answers; `reason` says why it doesn't."""

    record: VersionRecord
    state: VersionState
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Digests of the encoders that compute a version's scores and the vector that is stored.

    They differ for a version whose encoder computes no vectors of `space`, the space of the index.
    """

    scorer: str
    embedder: str
    space: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """All versions of all models at one moment.

    Attributes:
        revision: grows with every change.
        models: each model's versions by number.
        champions: each model's answering version: the one under the alias, or its predecessor until that is ready.
        space: the embedding space of the index.
        space_encoders: digests of the running encoders whose vectors lie in `space`.
        embedder: the one of them that computes vectors alone.
        embedders_by_space: a running encoder of each other space.
        replicas: the number of replicas of each encoder (by its short digest) in each state.
    """

    revision: int = 0
    models: Mapping[str, Mapping[str, CatalogEntry]] = field(default_factory=dict)
    champions: Mapping[str, str] = field(default_factory=dict)
    space: str | None = None
    space_encoders: frozenset[str] = frozenset()
    embedder: str | None = None
    embedders_by_space: Mapping[str, str] = field(default_factory=dict)
    replicas: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def versions(self, model: str) -> Mapping[str, CatalogEntry]:
        """Return the versions of a model by number.

        Raises:
            NotFound: no such model.
        """
        try:
            return self.models[model]
        except KeyError:
            raise NotFound(f"there is no model {model!r}: GET /v1/models lists them") from None

    def entry(self, model: str, version: str) -> CatalogEntry:
        """Return a version and its state.

        Raises:
            NotFound: no such model or version.
        """
        entry = self.versions(model).get(version)
        if entry is None:
            raise NotFound(f"model {model!r} has no version {version!r}: GET /v1/models/{model} lists them")
        return entry

    def ready_version(self, model: str, version: str) -> VersionRecord:
        """Return the named version if it is ready.

        Raises:
            NotFound: no such model or version.
            ModelNotReady: it is registered, but doesn't answer now.
        """
        entry = self.entry(model, version)
        if entry.state is not VersionState.READY:
            # It idles on purpose.
            state = "asleep" if entry.state is VersionState.ABSENT else entry.state
            raise ModelNotReady(
                f"version {version} of {model!r} is {state}",
                retry_after=2,
                reason=entry.reason,
            )
        return entry.record

    def is_ready(self, model: str, version: str) -> bool:
        """Return whether the version exists and answers."""
        entry = self.models.get(model, {}).get(version)
        return entry is not None and entry.state is VersionState.READY

    def champion(self, model: str) -> VersionRecord:
        """Return the version that answers a request that names none.

        Raises:
            NotFound: no such model.
            ModelNotReady: no version answers now.
        """
        versions = self.versions(model)
        if (version := self.champions.get(model)) is not None:
            return self.ready_version(model, version)
        for version, entry in versions.items():
            if CHAMPION in entry.record.aliases:
                return self.ready_version(model, version)
        raise ModelNotReady(
            f"model {model!r} has no champion: set the alias, or name a version", retry_after=5
        )

    def languages(self, model: str) -> tuple[str, ...]:
        """Return the languages that a model's champion knows; none without a champion, or if nobody said."""
        entry = self.models.get(model, {}).get(self.champions.get(model, ""))
        return () if entry is None else entry.record.languages

    def placement(self, record: VersionRecord | None) -> Placement:
        """Return the encoders that compute a version, or a vector alone if `record` is None.

        Raises:
            ModelNotReady: no encoder of the space runs.
        """
        own = None if record is None else record.encoder
        embedder = own if own in self.space_encoders else self.embedder
        if embedder is None:
            raise ModelNotReady("no encoder of the embedding space answers yet: try again", retry_after=2)
        return Placement(scorer=own or embedder, embedder=embedder, space=self.space)

    def placement_in(self, space: str | None) -> Placement:
        """Return the encoder of a space, which may be the previous one for a request that began before a switch.

        Raises:
            ModelNotReady: no encoder of the space runs.
        """
        if space == self.space:
            return self.placement(None)
        if space is None or (embedder := self.embedders_by_space.get(space)) is None:
            raise ModelNotReady(
                "no encoder of the embedding space answers any more: try again", retry_after=1
            )
        return Placement(scorer=embedder, embedder=embedder, space=space)
