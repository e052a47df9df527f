"""The fleet: makes what runs match what the registry asks, and publishes the catalogue.

One per cluster. Looks at the registry each second; a version is `ready` once a replica has proven that it loads and
answers. Ingress replicas follow by a long poll, so a change reaches all of them at once. Never touches a request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Protocol

import structlog

from registry.errors import RegistryError
from registry.records import VersionRecord
from serving.catalogue import CHAMPION, Catalogue, Entry, State
from serving.errors import ServingError

log = structlog.get_logger(__name__)

RETRY_SECONDS = 10.0


class Versions(Protocol):
    """The registry, as the fleet sees it; the calls block."""

    def models(self) -> list[str]:
        """The names of all models."""
        ...

    def versions(self, model: str) -> list[VersionRecord]:
        """All versions of a model."""
        ...


class History(Protocol):
    """Who was champion, as the fleet keeps it true."""

    async def reconcile(self, model: str, champion: str | None) -> None:
        """Make it say what the alias says."""
        ...


class Fleet:
    """Publishes a new catalogue whenever a version, an alias or a state changes.

    Args:
        registry: what should run.
        load: loads and tries a version on the replicas; raises if it can't answer.
        encoder: digest of the encoder that runs; versions on another one are absent.
        history: told of every champion that is seen.
    """

    def __init__(
        self,
        registry: Versions,
        load: Callable[[VersionRecord], Awaitable[None]],
        *,
        encoder: str,
        history: History | None = None,
    ) -> None:
        self._registry = registry
        self._load = load
        self._encoder = encoder
        self._history = history
        self._ready: set[str] = set()
        self._failed: dict[str, tuple[str, float]] = {}
        self._catalogue = Catalogue()
        self._changed = asyncio.Condition()

    @property
    def catalogue(self) -> Catalogue:
        """What was published last."""
        return self._catalogue

    async def watch(self, revision: int, timeout: float = 20.0) -> Catalogue:
        """The catalogue as soon as it differs from `revision`, or as it stands after `timeout` seconds."""
        async with self._changed:
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait_for(lambda: self._catalogue.revision != revision)
            except TimeoutError:
                pass
        return self._catalogue

    async def follow(self, every: float) -> None:
        """Look at the registry every so many seconds, for ever; a registry that is down changes nothing."""
        while True:
            try:
                await self.look()
            except (RegistryError, ServingError) as error:
                log.warning("registry.unreachable", error=str(error))
            await asyncio.sleep(every)

    async def look(self) -> None:
        """Compare once, load what is new, publish what changed."""
        records = await asyncio.to_thread(self._read)
        for versions in records.values():
            # The champion first: it is what clients wait for.
            for record in sorted(versions, key=lambda record: not record.aliases):
                await self._settle(record)
        models: Mapping[str, Mapping[str, Entry]] = {
            model: {record.version: self._entry(record) for record in versions}
            for model, versions in records.items()
        }
        if models != self._catalogue.models:
            async with self._changed:
                self._catalogue = Catalogue(revision=self._catalogue.revision + 1, models=models)
                self._changed.notify_all()
            log.info("catalogue.published", revision=self._catalogue.revision)
        await self._reconcile(records)

    async def _reconcile(self, records: Mapping[str, Sequence[VersionRecord]]) -> None:
        if self._history is None:
            return
        for model, versions in records.items():
            champions = (record.version for record in versions if CHAMPION in record.aliases)
            await self._history.reconcile(model, next(champions, None))

    def _read(self) -> dict[str, list[VersionRecord]]:
        return {model: self._registry.versions(model) for model in self._registry.models()}

    async def _settle(self, record: VersionRecord) -> None:
        if not self._served_here(record) or record.digest in self._ready:
            return
        _, failed_at = self._failed.get(record.digest, ("", float("-inf")))
        if monotonic() - failed_at < RETRY_SECONDS:
            return
        try:
            await self._load(record)
        except Exception as error:
            # Whatever a foreign bundle raises is a reason, never the end of the fleet.
            self._failed[record.digest] = (str(error) or type(error).__name__, monotonic())
            log.warning("version.failed", model=record.model, version=record.version, error=str(error))
        else:
            self._failed.pop(record.digest, None)
            self._ready.add(record.digest)

    def _served_here(self, record: VersionRecord) -> bool:
        return record.encoder in (None, self._encoder)

    def _entry(self, record: VersionRecord) -> Entry:
        if record.digest in self._ready:
            return Entry(record=record, state=State.READY)
        if record.digest in self._failed:
            return Entry(record=record, state=State.FAILED, reason=self._failed[record.digest][0])
        if not self._served_here(record):
            return Entry(record=record, state=State.ABSENT, reason="no replica runs its encoder")
        return Entry(record=record, state=State.STARTING)
