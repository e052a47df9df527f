"""Reconcile what runs with what the registry and the traffic need, and publish the catalog.

One per cluster. Reads the registry at the interval of a setting, or every 0.2 s while something starts; a version is
`ready` once every replica of its encoder has loaded it and answered. Ingress replicas follow the catalog by a long
poll. Never touches a request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from registry.errors import NotRegistered, RegistryError
from registry.store.records import VersionRecord
from serving.control.backoff import Backoff
from serving.control.catalog_publisher import CatalogPublisher
from serving.control.pool import EncoderReplicas, EncoderStatus, ServePool
from serving.control.registry_cache import RegistryCache
from serving.control.requested_versions import ModelVersion, RequestedVersions
from serving.core.catalog import CHAMPION, Catalog, CatalogEntry, VersionState, short_digest
from serving.core.periodic import run_periodically, wait_at_most
from serving.errors import ServingError

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry
    from serving.control.lifecycle import LocalLifecycle

log = structlog.get_logger(__name__)

_BUSY_POLL_SECONDS = 0.2


class Reconciler:
    """Publishes a new catalog whenever a version, an alias or a state changes.

    If a new champion can't be loaded, the previous champion goes on answering. An encoder that nothing needs any more
    runs on for `grace` seconds, in which a way back is instant.

    Args:
        registry: the registered versions and encoders.
        pool: the running encoders.
        space: the embedding space that is searched at first; an encoder of the searched space always runs.
        model: the model whose champion's encoder embeds texts, if it gives vectors of the searched space.
        live_space: returns the live space. It is searched once an encoder of it runs and `is_caught_up` is true.
        is_caught_up: returns whether a space holds all vectors but those of the last moment.
        experiment_versions: returns model and version of each challenger of a running experiment.
        lifecycle: records champions and failures.
        grace: seconds for which an encoder runs on.
        client_encoders: encoders that run beyond what else is needed, while clients may have one started.
        first_revision: the revision of the first catalog, at least 1.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        registry: "ModelRegistry",
        pool: ServePool,
        *,
        space: str,
        model: str,
        live_space: Callable[[], Awaitable[str]],
        is_caught_up: Callable[[str], Awaitable[bool]],
        experiment_versions: Callable[[], Awaitable[Collection[ModelVersion]]],
        lifecycle: "LocalLifecycle",
        grace: float = 300.0,
        client_encoders: int = 1,
        first_revision: int = 1,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._cache = RegistryCache(registry, clock=clock)
        self._pool = pool
        self._space = space
        self._model = model
        self._live_space = live_space
        self._is_caught_up = is_caught_up
        self._experiment_versions = experiment_versions
        self._lifecycle = lifecycle
        self._grace = grace
        self._client_encoders = client_encoders
        self._clock = clock
        self._publisher = CatalogPublisher(first_revision)
        self._backoff = Backoff(clock)
        self._running: set[str] = set()
        self._starting: set[str] = set()
        self._requested = RequestedVersions(grace, clock)
        # When each encoder was last needed, by short digest.
        self._last_needed: dict[str, float] = {}
        # Digests of encoder and bundle of the versions that answer.
        self._ready: set[tuple[str, str]] = set()
        self._champions: dict[str, str] = {}
        self._postponed = False
        self._wake = asyncio.Event()

    @property
    def catalog(self) -> Catalog:
        """The last published catalog."""
        return self._publisher.catalog

    async def watch(self, revision: int, timeout: float = 20.0) -> Catalog:
        """Return the catalog once its revision differs from `revision`, or after `timeout` seconds."""
        return await self._publisher.watch(revision, timeout)

    def request_versions(self, versions: Iterable[ModelVersion], *, by_clients: bool = False) -> None:
        """Keep versions that were requested by name running for a while; those of clients only where there is room."""
        if self._requested.add(versions, by_clients=by_clients):
            self._wake.set()

    async def run(self, every: float) -> None:
        """Reconcile every `every` seconds, more often while something starts; wait for a registry that is down."""

        def pause() -> float:
            return min(every, _BUSY_POLL_SECONDS) if self._starting or self._postponed else every

        await run_periodically(
            self._reconcile_when_woken,
            every=pause,
            errors=(RegistryError, ServingError),
            event="registry.unreachable",
            sleep=partial(wait_at_most, self._wake),
        )

    async def _reconcile_when_woken(self) -> None:
        self._wake.clear()
        await self.reconcile()

    async def reconcile(self) -> None:
        """Start and load what is needed, publish the catalog if it changed, stop what nothing needs."""
        await asyncio.to_thread(self._cache.read)
        states = await self._pool.states()
        live = await self._live_space()
        needed = await asyncio.to_thread(
            self._needed_encoders, await self._experiment_versions(), states, live
        )
        self._running = {
            digest
            for digest in self._cache.encoders
            if _has_status(states.get(short_digest(digest)), EncoderStatus.RUNNING)
        }
        self._ready = {(encoder, digest) for encoder, digest in self._ready if encoder in self._running}
        await self._start(needed, states)
        self._postponed = False
        await self._switch_space(live)
        for versions in self._cache.versions.values():
            # The champion first, because clients wait for it.
            for record in sorted(versions, key=lambda record: CHAMPION not in record.aliases):
                await self._load(record)
        await self._for_each_model(self._choose_champion)
        unneeded = self._unneeded(needed, states)
        self._running -= {digest for digest in self._running if short_digest(digest) in unneeded}
        await self._publish({name: state.replicas for name, state in states.items() if state.replicas})
        for name in unneeded:
            log.info("encoder.stopping", encoder=name)
            await self._pool.stop(name)
        await self._for_each_model(self._record_champion)

    async def _for_each_model(self, work: Callable[[str, Sequence[VersionRecord]], Awaitable[None]]) -> None:
        """Do something with each model; one that fails is logged by name, and raised if it is the only one."""
        for model, versions in self._cache.versions.items():
            try:
                await work(model, versions)
            except (RegistryError, ServingError) as error:
                if len(self._cache.versions) == 1:
                    raise
                log.warning("model.postponed", model=model, error=str(error))

    async def _record_champion(self, model: str, versions: Sequence[VersionRecord]) -> None:
        named = (record.version for record in versions if CHAMPION in record.aliases)
        await self._lifecycle.reconcile(model, next(named, None))

    def _needed_encoders(
        self, experiment_versions: Collection[ModelVersion], running: Collection[str], live: str
    ) -> set[str]:
        """Return the digests of the encoders that must run.

        They are those of champions, of challengers, of requested versions, and of the searched and the live space.
        Looks up the encoders that run already too, by their short digests `running`.
        """
        wanted = {
            *experiment_versions,
            *self._requested.recent(by_clients=False),
            *self._champions.items(),
        }
        needed: set[str] = set()
        for model, versions in self._cache.versions.items():
            for record in versions:
                if record.encoder is None:
                    continue
                if CHAMPION in record.aliases or (model, record.version) in wanted:
                    if self._is_registered(record.encoder):
                        needed.add(record.encoder)
                elif short_digest(record.encoder) in running:
                    self._is_registered(record.encoder)
        for space in {self._space, live}:
            if not any(self._cache.encoders[digest].space == space for digest in needed):
                try:
                    needed.add(self._cache.encoder_of_space(space, self._running).digest)
                except NotRegistered as error:
                    if space == self._space:
                        raise
                    log.warning("space.postponed", space=space, error=str(error))
        return needed | self._client_requested_encoders(needed, running)

    def _client_requested_encoders(self, needed: Collection[str], running: Collection[str]) -> set[str]:
        """Return the encoders that clients keep running, or have started: none that runs makes room for another."""
        encoders = {
            (model, record.version): record.encoder
            for model, versions in self._cache.versions.items()
            for record in versions
        }
        requested = [encoders.get(version) for version in self._requested.recent(by_clients=True)]
        named = dict.fromkeys(
            encoder
            for encoder in requested
            if encoder is not None and encoder not in needed and self._is_registered(encoder)
        )
        kept = {encoder for encoder in named if short_digest(encoder) in running}
        others = set(running) - {short_digest(encoder) for encoder in needed}
        room = max(0, self._client_encoders - len(others))
        return kept | set([encoder for encoder in named if encoder not in kept][:room])

    def _is_registered(self, digest: str) -> bool:
        try:
            self._cache.encoder(digest)
        except NotRegistered:
            self._backoff.add(digest, "its encoder is not registered")
            return False
        return True

    async def _start(self, needed: set[str], states: Mapping[str, EncoderReplicas]) -> None:
        self._starting = set()
        for digest in needed:
            state = states.get(short_digest(digest))
            if _has_status(state, EncoderStatus.RUNNING):
                self._backoff.clear(digest)
            elif state is not None and state.status is EncoderStatus.FAILED:
                self._backoff.add(digest, state.reason or "its encoder does not start")
                await self._pool.stop(short_digest(digest))
            elif state is not None:
                self._starting.add(digest)
            elif not self._backoff.is_active(digest):
                try:
                    await self._pool.start(self._cache.encoders[digest])
                except RegistryError as error:
                    self._backoff.add(digest, str(error))
                else:
                    self._starting.add(digest)
                    log.info("encoder.starting", encoder=digest)

    def _unneeded(self, needed: set[str], states: Mapping[str, EncoderReplicas]) -> list[str]:
        """Return the short digests of the encoders that were not needed for longer than the grace time."""
        now = self._clock()
        kept = {short_digest(digest) for digest in needed}
        for name in states:
            if name in kept:
                self._last_needed[name] = now
            else:
                self._last_needed.setdefault(name, now)
        return [
            name
            for name, state in states.items()
            if state.status is not EncoderStatus.STOPPING and now - self._last_needed[name] > self._grace
        ]

    async def _switch_space(self, live: str) -> None:
        """Move the searches to the live space once it is caught up and an encoder of it runs.

        The versions without an encoder of their own must be loaded on that encoder first.
        """
        if live == self._space or live not in {
            self._cache.encoders[digest].space for digest in self._running
        }:
            return
        if not await self._is_caught_up(live):
            return
        previous, self._space = self._space, live
        for versions in self._cache.versions.values():
            for record in versions:
                if record.encoder is None:
                    await self._load(record)
        if self._postponed:
            self._space = previous
        else:
            log.info("space.switched", space=live, before=previous)

    def _encoder_for(self, record: VersionRecord) -> str | None:
        """Return the running encoder that scores a version, None if it doesn't run."""
        if record.encoder is not None:
            return record.encoder if record.encoder in self._running else None
        return self._embedder()

    def _embedder(self) -> str | None:
        """Return the running encoder that embeds texts: the champion's, if it is of the searched space."""
        space_encoders = sorted(
            digest for digest in self._running if self._cache.encoders[digest].space == self._space
        )
        champion = self._champions.get(self._model)
        for record in self._cache.versions.get(self._model, ()):
            if record.encoder in space_encoders and (
                record.version == champion or CHAMPION in record.aliases
            ):
                return record.encoder
        return space_encoders[0] if space_encoders else None

    async def _load(self, record: VersionRecord) -> None:
        encoder = self._encoder_for(record)
        if (
            encoder is None
            or (encoder, record.digest) in self._ready
            or self._backoff.is_active(record.digest)
        ):
            return
        try:
            await self._pool.load(encoder, record)
        except ServingError as error:
            self._postponed = True
            log.warning("version.postponed", model=record.model, version=record.version, error=str(error))
        except Exception as error:
            # A foreign bundle may raise anything, which must not end the loop.
            reason = str(error) or type(error).__name__
            is_new = self._backoff.add(record.digest, reason)
            log.warning("version.failed", model=record.model, version=record.version, error=reason)
            if is_new:
                await self._lifecycle.failed(record, reason)
        else:
            self._backoff.clear(record.digest)
            self._ready.add((encoder, record.digest))

    async def _choose_champion(self, model: str, versions: Sequence[VersionRecord]) -> None:
        """Make the version that the alias names the champion once it is ready; keep the previous champion until then.

        A new process doesn't know the previous champion. If the named version has failed or is gone, the history
        tells it.
        """
        ready = {record.version for record in versions if self._is_ready(record)}
        named = next((record for record in versions if CHAMPION in record.aliases), None)
        if named is not None and named.version in ready:
            self._champions[model] = named.version
        elif self._champions.get(model) not in ready:
            self._champions.pop(model, None)
            if named is None or self._entry(named).state is VersionState.FAILED:
                await self._substitute_champion(model, ready)

    async def _substitute_champion(self, model: str, ready: Collection[str]) -> None:
        """Let the last champion that is ready answer, else the newest ready version; none if there never was one."""
        former = await self._lifecycle.champions(model) if ready else ()
        if former:
            last = next((version for version in former if version in ready), max(ready, key=int))
            self._champions[model] = last
            log.warning("champion.substituted", model=model, version=last, former=former[0])

    async def _publish(self, replicas: Mapping[str, Mapping[str, int]]) -> None:
        embedder = self._embedder()
        if not self.catalog.revision and (self._postponed or (self._running and embedder is None)):
            # A new process must not take away what answers: it publishes once it has found all that runs.
            return
        catalog = Catalog(
            models={
                model: {record.version: self._entry(record) for record in versions}
                for model, versions in self._cache.versions.items()
            },
            champions=dict(self._champions),
            space=self._space,
            space_encoders=frozenset(
                digest for digest in self._running if self._cache.encoders[digest].space == self._space
            ),
            embedder=embedder,
            embedders_by_space={
                space: digest
                for digest in sorted(self._running)
                if (space := self._cache.encoders[digest].space) not in (None, self._space)
            },
            replicas=replicas,
        )
        await self._publisher.publish(catalog)

    def _is_ready(self, record: VersionRecord) -> bool:
        encoder = self._encoder_for(record)
        return encoder is not None and (encoder, record.digest) in self._ready

    def _entry(self, record: VersionRecord) -> CatalogEntry:
        if self._is_ready(record):
            return CatalogEntry(record=record, state=VersionState.READY)
        for digest in (record.digest, record.encoder):
            if digest is not None and (reason := self._backoff.reason(digest)) is not None:
                return CatalogEntry(record=record, state=VersionState.FAILED, reason=reason)
        if record.encoder is not None and record.encoder not in self._running | self._starting:
            return CatalogEntry(
                record=record,
                state=VersionState.ABSENT,
                reason="no replica runs its encoder; a request that names it starts it",
            )
        return CatalogEntry(record=record, state=VersionState.STARTING)


def _has_status(state: EncoderReplicas | None, status: EncoderStatus) -> bool:
    return state is not None and state.status is status
