"""The fleet: makes what runs match what the registry and the traffic ask, and publishes the catalog.

One per cluster. Looks at the registry each second; a version is `ready` once every replica of its encoder has proven
that it loads and answers. Ingress replicas follow by a long poll. Never touches a request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Protocol, TypeAlias

import structlog

from registry.errors import NotRegistered, RegistryError
from registry.store.records import EncoderRecord, VersionRecord
from serving.control.backoff import Backoff
from serving.control.pool import EncoderState, EncoderStatus
from serving.control.registry_cache import Registered, RegistryCache
from serving.core.catalog import CHAMPION, Catalog, CatalogEntry, VersionState, short_digest
from serving.core.periodic import run_periodically, wait_at_most
from serving.errors import ServingError

log = structlog.get_logger(__name__)

_LOOK_SOON_SECONDS = 0.2

Named: TypeAlias = tuple[str, str]


class Pool(Protocol):
    """The replicas, as the fleet sees them: an encoder's by its digest, or by its short name."""

    async def states(self) -> Mapping[str, EncoderState]:
        """How far each is, by short name."""
        ...

    async def start(self, record: EncoderRecord) -> None:
        """Have its replicas start."""
        ...

    async def stop(self, name: str) -> None:
        """Drain and end its replicas."""
        ...

    async def load(self, digest: str, version: VersionRecord) -> None:
        """Load and try a version on all of its replicas; raises if it can't answer."""
        ...


class History(Protocol):
    """What a person would want to find later, as the fleet keeps it true."""

    async def reconcile(self, model: str, champion: str | None) -> None:
        """Make it say what the alias says."""
        ...

    async def failed(self, record: VersionRecord, reason: str) -> None:
        """A version can't answer."""
        ...

    async def champions(self, model: str) -> Sequence[str]:
        """The versions that were champion, the last one first."""
        ...


async def _nothing() -> Collection[Named]:
    return ()


async def _unmoved() -> str | None:
    return None


async def _whole(_space: str) -> bool:
    return True


class Reconciler:
    """Publishes a new catalog whenever a version, an alias or a state changes.

    What can't be loaded leaves the present champion answering. An encoder that nobody needs any more runs on for
    `grace` seconds, in which going back is instant.

    Args:
        registry: what there is.
        pool: what runs.
        space: the index's embedding space, one of whose encoders always runs.
        live: the space that it should be, None: as it is. It becomes that once an encoder of it runs and
            `caught_up` says that it holds what was stored until a moment ago.
        model: whose champion embeds texts, if its encoder is in the space.
        tried: model and version of what the running experiments need.
        history: who keeps what happened; told of every champion that is seen.
        first: the first catalog's revision, at least 1.
        clock: seconds, never stepping back.
    """

    def __init__(
        self,
        registry: Registered,
        pool: Pool,
        *,
        space: str,
        model: str,
        grace: float = 300.0,
        live: Callable[[], Awaitable[str | None]] = _unmoved,
        caught_up: Callable[[str], Awaitable[bool]] = _whole,
        tried: Callable[[], Awaitable[Collection[Named]]] = _nothing,
        history: History | None = None,
        first: int = 1,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._roster = RegistryCache(registry)
        self._pool = pool
        self._space = space
        self._live = live
        self._caught_up = caught_up
        self._model = model
        self._grace = grace
        self._tried = tried
        self._history = history
        self._clock = clock
        self._running: set[str] = set()
        self._starting: set[str] = set()
        self._needed: dict[str, float] = {}
        self._asked: dict[Named, float] = {}
        self._ready: set[tuple[str, str]] = set()
        self._failures = Backoff(clock)
        self._champions: dict[str, str] = {}
        self._postponed = False
        self._next = first
        self._catalog = Catalog()
        self._changed = asyncio.Condition()
        self._soon = asyncio.Event()

    @property
    def catalog(self) -> Catalog:
        """What was published last."""
        return self._catalog

    async def watch(self, revision: int, timeout: float = 20.0) -> Catalog:
        """The catalog as soon as it differs from `revision`, or as it stands after `timeout` seconds.

        Its revision is 0 as long as nothing has been published.
        """
        async with self._changed:
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait_for(lambda: self._catalog.revision not in (0, revision))
            except TimeoutError:
                pass
        return self._catalog

    def want(self, versions: Iterable[Named]) -> None:
        """These versions were asked for by name: have them answer for a while."""
        now = self._clock()
        if fresh := set(versions):
            if fresh - self._asked.keys():
                self._soon.set()
            self._asked.update(dict.fromkeys(fresh, now))

    async def follow(self, every: float) -> None:
        """Look every so many seconds, sooner while something starts; a registry that is down changes nothing."""

        def pause() -> float:
            return min(every, _LOOK_SOON_SECONDS) if self._starting or self._postponed else every

        await run_periodically(
            self._look_when_woken,
            every=pause,
            errors=(RegistryError, ServingError),
            event="registry.unreachable",
            sleep=partial(wait_at_most, self._soon),
        )

    async def _look_when_woken(self) -> None:
        self._soon.clear()
        await self.look()

    async def look(self) -> None:
        """Compare once, start and load what is needed, publish what changed, stop what nobody needs."""
        await asyncio.to_thread(self._roster.read)
        states = await self._pool.states()
        live = await self._live() or self._space
        needed = await asyncio.to_thread(self._wanted, await self._tried(), states, live)
        self._running = {
            digest
            for digest in self._roster.encoders
            if _is(states.get(short_digest(digest)), EncoderStatus.RUNNING)
        }
        self._ready = {(place, digest) for place, digest in self._ready if place in self._running}
        await self._start(needed, states)
        self._postponed = False
        await self._move(live)
        for versions in self._roster.versions.values():
            # The champion first: it is what clients wait for.
            for record in sorted(versions, key=lambda record: CHAMPION not in record.aliases):
                await self._settle(record)
        for model, versions in self._roster.versions.items():
            await self._crown(model, versions)
        over = self._over(needed, states)
        self._running -= {digest for digest in self._running if short_digest(digest) in over}
        await self._publish({name: state.replicas for name, state in states.items() if state.replicas})
        for name in over:
            log.info("encoder.stopping", encoder=name)
            await self._pool.stop(name)
        if self._history is not None:
            for model, versions in self._roster.versions.items():
                named = (record.version for record in versions if CHAMPION in record.aliases)
                await self._history.reconcile(model, next(named, None))

    def _wanted(self, tried: Collection[Named], states: Collection[str], live: str) -> set[str]:
        """Digests of the encoders that must run: of champions, of experiments, of what was asked for, of the spaces.

        Gets to know those that run already, by their short names `states`.
        """
        now = self._clock()
        self._asked = {named: at for named, at in self._asked.items() if now - at < self._grace}
        named = {*tried, *self._asked, *self._champions.items()}
        needed: set[str] = set()
        for model, versions in self._roster.versions.items():
            for record in versions:
                if record.encoder is None:
                    continue
                if CHAMPION in record.aliases or (model, record.version) in named:
                    if self._known(record.encoder):
                        needed.add(record.encoder)
                elif short_digest(record.encoder) in states:
                    self._known(record.encoder)
        for space in {self._space, live}:
            if not any(self._roster.encoders[digest].space == space for digest in needed):
                try:
                    needed.add(self._roster.of_space(space, self._running).digest)
                except NotRegistered as error:
                    if space == self._space:
                        raise
                    log.warning("space.postponed", space=space, error=str(error))
        return needed

    def _known(self, digest: str) -> bool:
        try:
            self._roster.encoder(digest)
        except NotRegistered:
            self._failures.note(digest, "its encoder is not registered")
            return False
        return True

    async def _start(self, needed: set[str], states: Mapping[str, EncoderState]) -> None:
        self._starting = set()
        for digest in needed:
            state = states.get(short_digest(digest))
            if _is(state, EncoderStatus.RUNNING):
                self._failures.forget(digest)
            elif state is not None and state.running is EncoderStatus.FAILED:
                self._failures.note(digest, state.reason or "its encoder does not start")
                await self._pool.stop(short_digest(digest))
            elif state is not None:
                self._starting.add(digest)
            elif not self._failures.lately(digest):
                try:
                    await self._pool.start(self._roster.encoders[digest])
                except RegistryError as error:
                    self._failures.note(digest, str(error))
                else:
                    self._starting.add(digest)
                    log.info("encoder.starting", encoder=digest)

    def _over(self, needed: set[str], states: Mapping[str, EncoderState]) -> list[str]:
        """Short names of what runs and was last needed longer ago than the grace time."""
        now = self._clock()
        kept = {short_digest(digest) for digest in needed}
        for name in states:
            if name in kept:
                self._needed[name] = now
            else:
                self._needed.setdefault(name, now)
        return [
            name
            for name, state in states.items()
            if state.running is not EncoderStatus.STOPPING and now - self._needed[name] > self._grace
        ]

    async def _move(self, live: str) -> None:
        """Go over to the live space once an encoder of it runs, with what reads texts itself loaded there."""
        if live == self._space or live not in {
            self._roster.encoders[digest].space for digest in self._running
        }:
            return
        if not await self._caught_up(live):
            return
        before, self._space = self._space, live
        for versions in self._roster.versions.values():
            for record in versions:
                if record.encoder is None:
                    await self._settle(record)
        if self._postponed:
            self._space = before
        else:
            log.info("space.switched", space=live, before=before)

    def _place(self, record: VersionRecord) -> str | None:
        """The running encoder that a version is scored on."""
        if record.encoder is not None:
            return record.encoder if record.encoder in self._running else None
        return self._embedder()

    def _embedder(self) -> str | None:
        """The running encoder that embeds: the champion's, if it can."""
        space_encoders = sorted(
            digest for digest in self._running if self._roster.encoders[digest].space == self._space
        )
        champion = self._champions.get(self._model)
        for record in self._roster.versions.get(self._model, ()):
            if record.encoder in space_encoders and (
                record.version == champion or CHAMPION in record.aliases
            ):
                return record.encoder
        return space_encoders[0] if space_encoders else None

    async def _settle(self, record: VersionRecord) -> None:
        place = self._place(record)
        if place is None or (place, record.digest) in self._ready or self._failures.lately(record.digest):
            return
        try:
            await self._pool.load(place, record)
        except ServingError as error:
            self._postponed = True
            log.warning("version.postponed", model=record.model, version=record.version, error=str(error))
        except Exception as error:
            # Whatever a foreign bundle raises is a reason, never the end of the fleet.
            reason = str(error) or type(error).__name__
            anew = self._failures.note(record.digest, reason)
            log.warning("version.failed", model=record.model, version=record.version, error=reason)
            if anew and self._history is not None:
                await self._history.failed(record, reason)
        else:
            self._failures.forget(record.digest)
            self._ready.add((place, record.digest))

    async def _crown(self, model: str, versions: Sequence[VersionRecord]) -> None:
        """Have the version that the alias names answer once it can, and until then the one that did before.

        Where nobody knows which one did, because this process is new, and the named one is broken, the history knows.
        """
        ready = {record.version for record in versions if self._is_ready(record)}
        named = next((record for record in versions if CHAMPION in record.aliases), None)
        if named is not None and named.version in ready:
            self._champions[model] = named.version
        elif self._champions.get(model) not in ready:
            self._champions.pop(model, None)
            if named is not None and self._history and self._entry(named).state is VersionState.FAILED:
                before = await self._history.champions(model)
                if (last := next((version for version in before if version in ready), None)) is not None:
                    self._champions[model] = last

    async def _publish(self, replicas: Mapping[str, Mapping[str, int]]) -> None:
        embedder = self._embedder()
        if not self._catalog.revision and (self._postponed or (self._running and embedder is None)):
            # A fleet that is born again would unseat what answers; it looks again soon.
            return
        fresh = Catalog(
            revision=self._next,
            models={
                model: {record.version: self._entry(record) for record in versions}
                for model, versions in self._roster.versions.items()
            },
            champions=dict(self._champions),
            space=self._space,
            space_encoders=frozenset(
                digest for digest in self._running if self._roster.encoders[digest].space == self._space
            ),
            embedder=embedder,
            embedders_by_space={
                space: digest
                for digest in sorted(self._running)
                if (space := self._roster.encoders[digest].space) not in (None, self._space)
            },
            replicas=replicas,
        )
        if fresh != replace(self._catalog, revision=self._next):
            async with self._changed:
                self._catalog = fresh
                self._next += 1
                self._changed.notify_all()
            log.info("catalogue.published", revision=fresh.revision)

    def _is_ready(self, record: VersionRecord) -> bool:
        place = self._place(record)
        return place is not None and (place, record.digest) in self._ready

    def _entry(self, record: VersionRecord) -> CatalogEntry:
        if self._is_ready(record):
            return CatalogEntry(record=record, state=VersionState.READY)
        for digest in (record.digest, record.encoder):
            if digest is not None and (reason := self._failures.reason(digest)) is not None:
                return CatalogEntry(record=record, state=VersionState.FAILED, reason=reason)
        if record.encoder is not None and record.encoder not in self._running | self._starting:
            return CatalogEntry(
                record=record, state=VersionState.ABSENT, reason="no replica runs its encoder"
            )
        return CatalogEntry(record=record, state=VersionState.STARTING)


def _is(state: EncoderState | None, running: EncoderStatus) -> bool:
    return state is not None and state.running is running
