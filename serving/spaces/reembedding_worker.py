"""The process that gives texts the vectors of every space that is kept, in idle time alone.

`python -m serving.spaces.reembedding_worker` ends once only the live space is left. Killed at any point it neither
loses nor doubles a vector, because the rows of the texts say what is left to do. Two of them at once do no harm.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np
import structlog
from numpy.typing import NDArray

from db.connection.engine import Database
from db.embeddings.reembedding import ReembeddingRepository
from db.embeddings.segments import Segments
from db.embeddings.spaces import SpaceRepository, SpaceState
from db.errors import Conflict, DatabaseError
from db.schema.tables import NIL_ID
from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import Engine
from registry.errors import RegistryError
from serving.core.subprocesses import yield_to_others
from serving.errors import ServingError
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder
from serving.inference.offline import embed_texts
from serving.spaces.space_filler import RECENT_SECONDS, SpaceFiller

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry

log = structlog.get_logger(__name__)

_RETRY_SECONDS: Final = 5.0
_PROGRESS_SECONDS: Final = 2.0
_REMOVAL_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class SpaceEncoders:
    """The encoders that define spaces, each opened at its first use.

    `share`: the share of the time that may be spent on computing.
    """

    registry: "ModelRegistry"
    _: KW_ONLY
    cache: Path
    engine: Engine | None = None
    share: float = 1.0
    _opened: dict[str, Encoder] = field(default_factory=dict, init=False)

    async def embed(self, space: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts in a space: float32 [n, d] of unit length.

        Raises:
            RegistryError: no encoder defines the space, or its bundle can't be fetched.
        """
        if (encoder := self._opened.get(space)) is None:
            encoder = self._opened[space] = await asyncio.to_thread(self._open, space)
        started = time.monotonic()
        vectors = await asyncio.to_thread(embed_texts, encoder, texts)
        await asyncio.sleep((time.monotonic() - started) * (1 / self.share - 1))
        return vectors

    def _open(self, space: str) -> Encoder:
        record = self.registry.space_encoder(space)
        bundle = Bundle.open(self.registry.fetch(record, self.cache))
        return open_encoder(bundle, engine=self.engine, threads=1)


class ReembeddingWorker:
    """Fills the spaces that are kept, and removes from the texts the spaces that are leaving.

    `retry_seconds`: the pause after a failure.
    """

    def __init__(
        self, database: Database, encoders: SpaceEncoders, *, retry_seconds: float = _RETRY_SECONDS
    ) -> None:
        self._database = database
        self._spaces = SpaceRepository(database)
        self._encoders = encoders
        self._retry_seconds = retry_seconds
        self._fillers: dict[str, SpaceFiller] = {}
        self._removed_until: dict[str, UUID] = {}
        self._progress: dict[str, tuple[float, int]] = {}

    async def run(self) -> None:
        """Work until only the live space is left; wait for a database that can't be reached."""
        while True:
            try:
                is_busy = await self.step()
            except DatabaseError as error:
                log.warning("reembedding.postponed", error=str(error))
                await asyncio.sleep(self._retry_seconds)
                continue
            if is_busy is None:
                return
            if not is_busy:
                await asyncio.sleep(RECENT_SECONDS)

    async def step(self) -> bool | None:
        """Do a little for each space; return whether more can be done at once, None if nothing is left."""
        states = await self._spaces.states()
        if all(state is SpaceState.LIVE for state in states.values()):
            return None
        is_busy = False
        for space, state in states.items():
            if state is SpaceState.LEAVING:
                self._fillers.pop(space, None)
                is_busy |= await self._remove(space)
            else:
                is_busy |= await self._fill(space, state)
        return is_busy

    async def _fill(self, space: str, state: SpaceState) -> bool:
        filler = self._fillers.get(space)
        if filler is None:
            await Segments(self._database, space).ensure()
            filler = self._fillers[space] = SpaceFiller(
                ReembeddingRepository(self._database, space=space), partial(self._encoders.embed, space)
            )
        try:
            is_busy = await filler.step()
        except Conflict:
            # The space has begun to leave: the next step sees its state.
            return False
        except RegistryError as error:
            await self._spaces.record_obstacle(space, str(error))
            log.warning("reembedding.stuck", space=space, error=str(error))
            await asyncio.sleep(self._retry_seconds)
            return False
        if state is SpaceState.BUILDING and filler.is_whole and await self._spaces.mark_whole(space):
            log.info("space.whole", space=space)
        await self._record_progress(space, filler)
        return is_busy

    async def _record_progress(self, space: str, filler: SpaceFiller) -> None:
        now = time.monotonic()
        since, before = self._progress.setdefault(space, (now, filler.added))
        if now - since >= _PROGRESS_SECONDS:
            self._progress[space] = (now, filler.added)
            await self._spaces.record_progress(space, pace=(filler.added - before) / (now - since) or None)

    async def _remove(self, space: str) -> bool:
        last = await ReembeddingRepository(self._database, space=space).remove_space(
            self._removed_until.get(space, NIL_ID), limit=_REMOVAL_PAGE
        )
        self._removed_until[space] = last or NIL_ID
        if last is not None:
            return True
        if await self._spaces.delete_if_empty(space):
            log.info("space.forgotten", space=space)
        else:
            # Its segments are dropped once no search reads them.
            await asyncio.sleep(self._retry_seconds)
        return False


async def run() -> None:
    """Work as the settings say."""
    from serving.core.connections import build_database, build_registry
    from serving.core.home import Home
    from serving.core.logs import configure_logging
    from serving.settings import Settings

    settings = Settings()
    configure_logging(settings.log_level, process="reembedding", file=settings.log_file)
    encoders = SpaceEncoders(
        build_registry(settings),
        cache=Home(settings.home).cache,
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
    """Run the process; return its exit code."""
    yield_to_others()
    try:
        asyncio.run(run())
    except (DatabaseError, RegistryError, ServingError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
