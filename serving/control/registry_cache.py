"""The roster: which versions and which of their encoders the registry held when it was read last.

Owns what is read anew and what is kept. Never writes; the calls block as the registry's do.
"""

from collections.abc import Collection
from typing import Protocol

from registry.store.records import EncoderRecord, VersionRecord


class Registered(Protocol):
    """The registry, as the roster sees it; the calls block."""

    def models(self) -> list[str]:
        """The names of all models."""
        ...

    def revision(self, model: str) -> str:
        """A value that changes whenever a version or an alias of the model does."""
        ...

    def versions(self, model: str) -> list[VersionRecord]:
        """All versions of a model."""
        ...

    def encoder(self, digest: str) -> EncoderRecord:
        """A registered encoder."""
        ...

    def space_encoder(self, space: str) -> EncoderRecord:
        """The encoder that defines a space."""
        ...


class RegistryCache:
    """`versions` by model, as last read; `encoders` by digest, those that were asked for."""

    def __init__(self, registry: Registered) -> None:
        self._registry = registry
        self._revisions: dict[str, str] = {}
        self.versions: dict[str, list[VersionRecord]] = {}
        self.encoders: dict[str, EncoderRecord] = {}

    def read(self) -> None:
        """Reads the versions of every model that has changed, and forgets models that are gone."""
        models = self._registry.models()
        for model in models:
            revision = self._registry.revision(model)
            if self._revisions.get(model) != revision:
                self.versions[model] = self._registry.versions(model)
                self._revisions[model] = revision
        for gone in self.versions.keys() - set(models):
            del self.versions[gone], self._revisions[gone]

    def encoder(self, digest: str) -> EncoderRecord:
        """An encoder, which never changes. Raises NotRegistered if there is none."""
        if digest not in self.encoders:
            self.encoders[digest] = self._registry.encoder(digest)
        return self.encoders[digest]

    def of_space(self, space: str, running: Collection[str]) -> EncoderRecord:
        """An encoder whose vectors lie in a space: one that runs, if there is one, else the one that defines it.

        Raises:
            NotRegistered: nothing defines the space.
        """
        known = [each for each in self.encoders.values() if each.space == space]
        if not known:
            known = [self._registry.space_encoder(space)]
            self.encoders[known[0].digest] = known[0]
        return next((each for each in known if each.digest in running), known[0])
