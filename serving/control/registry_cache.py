"""The versions and encoders of the registry as they were last read.

Never writes. Its calls block, as the registry's do.
"""

from collections.abc import Callable, Collection
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from registry.errors import RegistryError
from registry.store.records import EncoderRecord, VersionRecord

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry

_LIST_SECONDS = 5.0

log = structlog.get_logger(__name__)


class RegistryCache:
    """`versions` by model, as last read; `encoders` by digest, those that were looked up."""

    def __init__(self, registry: "ModelRegistry", *, clock: Callable[[], float] = monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._models: list[str] = []
        self._list_at = -inf
        self._revisions: dict[str, str] = {}
        self.versions: dict[str, list[VersionRecord]] = {}
        self.encoders: dict[str, EncoderRecord] = {}

    def read(self) -> None:
        """Read the versions of every model that has changed, and forget the models that are gone.

        Models that are new or gone are looked for every five seconds, which costs more than to look at those there are.
        A model that can't be read stays as it was last read, and is logged by name.
        Raises RegistryError if no model can be read.
        """
        if self._clock() >= self._list_at:
            self._models = self._registry.models()
            self._list_at = self._clock() + _LIST_SECONDS
        models = self._models
        failures = {}
        for model in models:
            try:
                self._read(model)
            except RegistryError as error:
                failures[model] = error
        if failures and len(failures) == len(models):
            raise next(iter(failures.values()))
        for model, failure in failures.items():
            log.warning("model.unreadable", model=model, error=str(failure))
        for gone in self.versions.keys() - set(models):
            del self.versions[gone], self._revisions[gone]

    def _read(self, model: str) -> None:
        revision = self._registry.revision(model)
        if self._revisions.get(model) != revision:
            self.versions[model] = self._registry.versions(model)
            self._revisions[model] = revision

    def encoder(self, digest: str) -> EncoderRecord:
        """Return an encoder; its record never changes. Raises NotRegistered if there is none."""
        if digest not in self.encoders:
            self.encoders[digest] = self._registry.encoder(digest)
        return self.encoders[digest]

    def encoder_of_space(self, space: str, running: Collection[str]) -> EncoderRecord:
        """Return an encoder of a space: a running one if there is one, else the one that defines the space.

        Raises:
            NotRegistered: no encoder defines the space.
        """
        known = [each for each in self.encoders.values() if each.space == space]
        if not known:
            known = [self._registry.space_encoder(space)]
            self.encoders[known[0].digest] = known[0]
        return next((each for each in known if each.digest in running), known[0])
