"""Shadow arms: a version that scores what another one answers, unseen by whoever asked.

Never delays or fails a request: what there is no room for is left out, and faults are only counted.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias
from uuid import UUID

import structlog

from db.predictions.submissions import Submission
from registry.store.records import VersionRecord
from serving.core.caller import Caller
from serving.core.catalog import Placement
from serving.errors import ModelNotReady, Overloaded, ServingError
from serving.inference.dispatcher import Dispatcher
from serving.predictions.prediction import PredictionFactory, PredictionInput
from serving.predictions.routing import Arm, Split

log = structlog.get_logger(__name__)

# Experiment, stage, arm.
Fault: TypeAlias = tuple[UUID, int, str]


class Faults:
    """What the arms of experiments could not answer, counted until it is stored."""

    def __init__(self) -> None:
        self._counts: Counter[Fault] = Counter()

    def add(self, split: Split, arm: Arm, texts: int) -> None:
        """An arm failed on so many texts."""
        self._counts[split.experiment_id, split.stage, arm] += texts

    def take(self) -> dict[Fault, int]:
        """What came since the last time."""
        counts, self._counts = dict(self._counts), Counter()
        return counts

    def give_back(self, counts: Mapping[Fault, int]) -> None:
        """What was taken could not be stored yet."""
        self._counts.update(counts)


class ShadowRunner:
    """Scores beside, and stores once the answer it stands beside is stored.

    A shadow on the champion's encoder joins the champion's batch and costs it no further pass.

    Args:
        store: stores a submission.
        room: requests that may be in the shadow at once; what comes beyond is left out.
    """

    def __init__(
        self,
        compute: Dispatcher,
        store: Callable[[Submission], Awaitable[object]],
        mint: PredictionFactory,
        faults: Faults,
        *,
        room: int = 256,
    ) -> None:
        self._compute = compute
        self._store = store
        self._mint = mint
        self._faults = faults
        self._room = room
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self,
        ask: PredictionInput,
        caller: Caller,
        record: VersionRecord,
        split: Split,
        place: Placement,
        *,
        beside: Placement,
    ) -> asyncio.Future[bool] | None:
        """Score beside the champion, which is computed at `beside`; None if there is no room.

        Give the future True once the answer is stored, or False if there is none.
        """
        if len(self._tasks) >= self._room:
            return None
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        shares = place.scorer == beside.scorer
        task = asyncio.create_task(
            self._score(ask, caller, record, split, place, answered, yields=not shares)
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return answered

    async def close(self) -> None:
        """Wait for those that are under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _score(
        self,
        ask: PredictionInput,
        caller: Caller,
        record: VersionRecord,
        split: Split,
        place: Placement,
        answered: asyncio.Future[bool],
        *,
        yields: bool,
    ) -> None:
        try:
            # On an encoder of its own it waits for the answer; on the champion's, for nothing but its batch.
            if yields and not await answered:
                return
            inferred = await self._compute.infer(ask.texts, record, place, yields=yields)
            if not await answered:
                return
            predictions = self._mint.predictions(ask, inferred, record, Arm.SHADOW, split.experiment_id)
            await self._store(self._mint.submission(ask, caller, predictions, inferred, space=place.space))
        except Overloaded:
            return
        except ModelNotReady:
            self._faults.add(split, Arm.SHADOW, len(ask.texts))
        except ServingError as error:
            log.warning("shadow.left_out", error=str(error))
