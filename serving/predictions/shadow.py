"""Shadow arms: a version that scores what another one answers, unseen by the caller.

Never delays or fails a request: it skips requests when too many run, and only counts faults.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
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
FaultKey: TypeAlias = tuple[UUID, int, str]


class FaultCounter:
    """Counts the texts that the arms of experiments could not answer, until the counts are stored."""

    def __init__(self) -> None:
        self._counts: Counter[FaultKey] = Counter()

    def add(self, split: Split, arm: Arm, texts: int) -> None:
        """Count texts on which an arm failed."""
        self._counts[split.experiment_id, split.stage, arm] += texts

    def take(self) -> dict[FaultKey, int]:
        """Return the counts since the last call, and start again at zero."""
        counts, self._counts = dict(self._counts), Counter()
        return counts

    def give_back(self, counts: Mapping[FaultKey, int]) -> None:
        """Add counts that were taken and could not be stored."""
        self._counts.update(counts)


@dataclass(frozen=True, slots=True)
class ShadowRunner:
    """Scores requests by their shadow version, and stores that beside the request's own predictions once these are.

    A shadow on the champion's encoder joins the champion's batch and costs no further pass.

    Args:
        commit: stores a submission.
        max_in_flight: the number of requests in the shadow at once; those beyond are skipped.
    """

    dispatcher: Dispatcher
    commit: Callable[[Submission], Awaitable[object]]
    factory: PredictionFactory
    faults: FaultCounter
    _: KW_ONLY
    max_in_flight: int = 256
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def start(
        self,
        request: PredictionInput,
        caller: Caller,
        record: VersionRecord,
        split: Split,
        placement: Placement,
        *,
        champion: Placement,
    ) -> asyncio.Future[Sequence[UUID]] | None:
        """Score a request by `record`; return None if too many are in the shadow.

        `champion`: the placement of the version that answers. Set the future to the ids of the answer's predictions
        once these are stored, or to none if there is no answer.
        """
        if len(self._tasks) >= self.max_in_flight:
            return None
        answer: asyncio.Future[Sequence[UUID]] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(
            self._score(
                request,
                caller,
                record,
                split,
                placement,
                answer,
                yields=placement.scorer != champion.scorer,
            )
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return answer

    async def close(self) -> None:
        """Wait for the requests that are in the shadow."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _score(
        self,
        request: PredictionInput,
        caller: Caller,
        record: VersionRecord,
        split: Split,
        placement: Placement,
        answer: asyncio.Future[Sequence[UUID]],
        *,
        yields: bool,
    ) -> None:
        try:
            # On the champion's encoder it shares the champion's batch; on another one it first waits for the answer.
            if yields and not await answer:
                return
            inferred = await self.dispatcher.infer(request.texts, record, placement, yields=yields)
            if not (beside := await answer):
                return
            predictions = self.factory.create(request, inferred, record, Arm.SHADOW, split.experiment_id)
            await self.commit(
                self.factory.create_submission(
                    request, caller, predictions, inferred, space=placement.space, beside=beside
                )
            )
        except Overloaded:
            return
        except ModelNotReady:
            self.faults.add(split, Arm.SHADOW, len(request.texts))
        except ServingError as error:
            log.warning("shadow.left_out", error=str(error))
