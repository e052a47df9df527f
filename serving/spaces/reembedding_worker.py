"""Texts get the vectors of every space that is kept, in a process that takes idle time alone.

`python -m serving.spaces.reembedding_worker` ends once only the live space is left. Killed anywhere it loses and
doubles nothing, because the texts themselves say what is to be done. Two at once do no harm.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeAlias
from uuid import UUID

import numpy as np
import structlog
from numpy.typing import NDArray

from db.connection.engine import Database
from db.embeddings.reembedding import ReembeddingRepository, TextPage
from db.embeddings.segments import Segments
from db.embeddings.spaces import SpaceRepository, SpaceState
from db.errors import Conflict, DatabaseError
from db.schema.tables import NIL_ID
from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import Engine
from registry.errors import RegistryError
from registry.store.records import EncoderRecord
from serving.core.subprocesses import yield_to_others
from serving.errors import ServingError
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder

log = structlog.get_logger(__name__)

_PAGE: Final = 5_000
_LATER_PAGE: Final = 500
_BATCH: Final = 64
_LOOK_SECONDS: Final = 0.5
_MEND_SECONDS: Final = 5.0
_NOTE_SECONDS: Final = 2.0
# How far the look at what was predicted lately overlaps with the one before; what it misses the round finds.
_OVERLAP: Final = timedelta(seconds=10)
_STRIKE: Final = 1_000

Embed: TypeAlias = Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]


class Lacking(Protocol):
    """The texts, as whoever fills a space sees them."""

    async def read_page(self, after: UUID = NIL_ID, *, limit: int) -> TextPage:
        """The next texts by id."""

    async def list_recent(self, since: datetime, *, limit: int) -> Sequence[UUID]:
        """What came lately and lacks a vector."""

    async def read_contents(self, ids: Sequence[UUID]) -> Sequence[tuple[UUID, str]]:
        """What they say."""

    async def add(self, ids: Sequence[UUID], vectors: Sequence[bytes]) -> int:
        """Their vectors."""


class Embedding(Protocol):
    """The encoders, as the work sees them."""

    async def embed(self, space: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of unit length in a space."""


class SpaceFiller:
    """Gives each text that lacks a vector of one space its own.

    Goes round all texts by id, and before each batch looks at what was predicted since the last look, so that nothing
    is missed and nothing new waits for the round.

    Args:
        texts: those of the space.
        embed: float32 [n, d] of unit length, in the space.
        page, later_page: how many texts a page has in the first round, and in those after it.
        look: seconds between two looks at what came lately.
    """

    def __init__(
        self,
        texts: Lacking,
        embed: Embed,
        *,
        page: int = _PAGE,
        later_page: int = _LATER_PAGE,
        batch: int = _BATCH,
        look: float = _LOOK_SECONDS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._texts = texts
        self._embed = embed
        self._page = page
        self._later_page = later_page
        self._batch = batch
        self._look = timedelta(seconds=look)
        self._now = now
        self._after: UUID = NIL_ID
        self._waiting: list[UUID] = []
        self._seen = self._due = now()
        self._rounds = 0
        self.filled = 0

    @property
    def whole(self) -> bool:
        """Whether every text that was there at the beginning has its vector, or is gone."""
        return self._rounds > 0 and not self._waiting

    async def step(self) -> bool:
        """Fill a batch, or look at a page: False once there is nothing more to do for now.

        Raises:
            Conflict: the space is leaving.
        """
        now = self._now()
        is_due = now >= self._due
        if is_due:
            if lately := await self._texts.list_recent(self._seen - _OVERLAP, limit=self._batch):
                await self._fill(lately)
                return True
            self._seen, self._due = now, now + self._look
        if self._waiting:
            await self._fill(self._waiting[: self._batch])
            del self._waiting[: self._batch]
            return True
        # After the first round it goes on for what nobody expects, a small page a look.
        if is_due or not self._rounds:
            limit = self._later_page if self._rounds else self._page
            page = await self._texts.read_page(self._after, limit=limit)
            self._waiting, self._after = list(page.lacking), page.last or NIL_ID
            self._rounds += page.last is None
        return bool(self._waiting) or not self._rounds

    async def _fill(self, ids: Sequence[UUID]) -> None:
        # What was erased meanwhile, or stored with its vector, isn't among them.
        found = await self._texts.read_contents(ids)
        if not found:
            return
        vectors = await self._embed([content for _, content in found])
        rows = np.ascontiguousarray(vectors, "<f2")
        self.filled += await self._texts.add(
            [text_id for text_id, _ in found], [row.tobytes() for row in rows]
        )


class SpaceEncoders:
    """The encoders that define spaces, each opened when it is needed first; computes one thing at a time.

    `share`: of the time in which it computes.
    """

    def __init__(
        self, registry: "Registered", *, cache: Path, engine: Engine | None = None, share: float = 1.0
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._engine = engine
        self._share = share
        self._opened: dict[str, Encoder] = {}

    async def embed(self, space: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, d] of unit length, float32.

        Raises:
            RegistryError: no encoder defines the space, or its bundle can't be had.
        """
        if (encoder := self._opened.get(space)) is None:
            encoder = self._opened[space] = await asyncio.to_thread(self._open, space)
        began = time.monotonic()
        vectors = await asyncio.to_thread(_embedded, encoder, texts)
        await asyncio.sleep((time.monotonic() - began) * (1 / self._share - 1))
        return vectors

    def _open(self, space: str) -> Encoder:
        record = self._registry.space_encoder(space)
        bundle = Bundle.open(self._registry.fetch(record, self._cache))
        return open_encoder(bundle, engine=self._engine, threads=1)


class Registered(Protocol):
    """The registry, as a re-embedding sees it; the calls block."""

    def space_encoder(self, space: str) -> EncoderRecord:
        """The one that defines a space."""

    def fetch(self, record: EncoderRecord, cache: Path) -> Path:
        """A verified folder."""


class ReembeddingWorker:
    """All that is to be done: spaces that are kept are filled, those that leave are struck off the texts."""

    def __init__(self, database: Database, encoders: Embedding, *, mend: float = _MEND_SECONDS) -> None:
        self._database = database
        self._spaces = SpaceRepository(database)
        self._encoders = encoders
        self._mend = mend
        self._fillings: dict[str, SpaceFiller] = {}
        self._struck: dict[str, UUID] = {}
        self._noted: dict[str, tuple[float, int]] = {}

    async def run(self) -> None:
        """Work until only the live space is left; a database that is away is waited for."""
        while True:
            try:
                busy = await self.step()
            except DatabaseError as error:
                log.warning("reembedding.postponed", error=str(error))
                await asyncio.sleep(self._mend)
                continue
            if busy is None:
                return
            if not busy:
                await asyncio.sleep(_LOOK_SECONDS)

    async def step(self) -> bool | None:
        """A little of everything: whether there is more to do at once, None once there is nothing left."""
        states = await self._spaces.states()
        if all(state is SpaceState.LIVE for state in states.values()):
            return None
        busy = False
        for space, state in states.items():
            if state is SpaceState.LEAVING:
                self._fillings.pop(space, None)
                busy |= await self._strike(space)
            else:
                busy |= await self._fill(space, state)
        return busy

    async def _fill(self, space: str, state: SpaceState) -> bool:
        filling = self._fillings.get(space)
        if filling is None:
            await Segments(self._database, space).ensure()
            filling = self._fillings[space] = SpaceFiller(
                ReembeddingRepository(self._database, space=space), partial(self._encoders.embed, space)
            )
        try:
            busy = await filling.step()
        except Conflict:
            # It leaves, as the next look will say.
            return False
        except RegistryError as error:
            await self._spaces.record_obstacle(space, str(error))
            log.warning("reembedding.stuck", space=space, error=str(error))
            await asyncio.sleep(self._mend)
            return False
        if state is SpaceState.BUILDING and filling.whole and await self._spaces.mark_whole(space):
            log.info("space.whole", space=space)
        await self._note(space, filling)
        return busy

    async def _note(self, space: str, filling: SpaceFiller) -> None:
        now = time.monotonic()
        since, before = self._noted.setdefault(space, (now, filling.filled))
        if now - since >= _NOTE_SECONDS:
            self._noted[space] = (now, filling.filled)
            await self._spaces.record_progress(space, pace=(filling.filled - before) / (now - since) or None)

    async def _strike(self, space: str) -> bool:
        last = await ReembeddingRepository(self._database, space=space).remove_space(
            self._struck.get(space, NIL_ID), limit=_STRIKE
        )
        self._struck[space] = last or NIL_ID
        if last is not None:
            return True
        if await self._spaces.forget(space):
            log.info("space.forgotten", space=space)
        else:
            # Its segments go once no search reads them.
            await asyncio.sleep(self._mend)
        return False


def _embedded(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    vectors = np.zeros((len(texts), encoder.settings.dimensions), np.float32)
    for micro in encoder.run(texts):
        vectors[micro.rows] = micro.embedding
    return vectors


async def run() -> None:
    """Works by the settings."""
    from serving.core.connections import build_database, build_registry
    from serving.core.logs import configure_logging
    from serving.settings import Settings

    settings = Settings()
    configure_logging(settings.log_level, process="reembedding", file=settings.log_file)
    encoders = SpaceEncoders(
        build_registry(settings),
        cache=settings.home / "cache",
        engine=None if settings.engine in ("auto", "torch") else Engine(settings.engine),
        share=settings.reembedding_share,
    )
    database = build_database(settings)
    await database.open()
    try:
        log.info("reembedding.begun")
        await ReembeddingWorker(database, encoders).run()
        log.info("reembedding.ended")
    finally:
        await database.close()


def main() -> int:
    """The process."""
    yield_to_others()
    try:
        asyncio.run(run())
    except (DatabaseError, RegistryError, ServingError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
