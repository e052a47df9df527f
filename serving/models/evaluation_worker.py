"""One evaluation, in a process of its own that takes idle time alone: `python -m serving.models.evaluation_worker ID`.

Opens the bundles itself, measures on one thread, and writes the report through db. Serves nobody.
"""

import asyncio
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import structlog

from db.analytics.replay import ReplayRepository, StoredText
from db.embeddings.spaces import SpaceRepository
from db.errors import DatabaseError
from db.models.evaluations import Evaluation, EvaluationRepository
from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import Engine
from registry.data.held_out import HeldOutSet
from registry.errors import NotRegistered, RegistryError
from registry.evaluation.replay import compare, stratify
from registry.evaluation.report import Agreement, EvaluationReport, HeldOutResult, ModelSize, Replay
from registry.store.records import EncoderRecord, VersionRecord
from serving.core.subprocesses import yield_to_others
from serving.errors import Invalid, ServingError
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder
from serving.inference.heads import load_head
from serving.inference.offline import OfflineScorer, cosines, rest_to_share

log = structlog.get_logger(__name__)

_BEAT_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 1.0
_COMPARED: Final = 256
_ENDED: Final = 3


class Source(Protocol):
    """The registry, as an evaluation sees it; the calls block."""

    def version(self, model: str, version: str) -> VersionRecord:
        """One version."""

    def champion(self, model: str) -> VersionRecord:
        """The one that the alias names."""

    def encoder(self, digest: str) -> EncoderRecord:
        """One encoder."""

    def space_encoder(self, space: str) -> EncoderRecord:
        """The one that defines a space."""

    def held_out(self, model: str, cache: Path) -> HeldOutSet:
        """The set that a model is judged on."""

    def fetch(self, record: VersionRecord | EncoderRecord, cache: Path) -> Path:
        """A verified folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """How much is measured: stored texts that are replayed, those they are drawn from, rounds of the bootstrap.

    `patience`: seconds to wait for the space's own encoder, which a fresh installation builds after the champion's.
    `share`: of the time in which it may score texts, so that whoever is served meanwhile hardly feels it.
    """

    replayed: int = 1000
    drawn: int = 4000
    judged: int = 2000
    rounds: int = 1000
    engine: Engine | None = None
    seed: int = 0
    patience: float = 180.0
    share: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opened:
    """A version and its encoder, ready to score."""

    record: VersionRecord
    scorer: OfflineScorer
    bundle: Bundle
    encoder: Bundle | None
    claims_space: bool


class VersionEvaluator:
    """Measures versions; one bundle is opened once, and nothing is downloaded that lies in the cache."""

    def __init__(
        self, registry: Source, *, space: str, cache: Path, plan: EvaluationPlan | None = None
    ) -> None:
        self._registry = registry
        self._space = space
        self._cache = cache
        self._plan = plan or EvaluationPlan()
        self._encoders: dict[tuple[str, Engine | None], Encoder] = {}
        self._bundles: dict[str, Bundle] = {}

    def examine(
        self,
        record: VersionRecord,
        held_out: HeldOutSet,
        champion: VersionRecord | None,
        stored: Callable[[], list[StoredText]],
    ) -> EvaluationReport:
        """The report on a version, by a held-out set and against a champion on `stored` texts.

        Raises:
            RegistryError: a bundle can't be fetched, verified or opened.
            Invalid: the version gives no usable answer.
        """
        started = time.monotonic()
        opened = self._open(record)
        texts = held_out.texts
        answers = opened.scorer.run(texts)
        replay = None
        if champion is not None and champion.digest != record.digest:
            replay = self._replay(opened, champion, stored(), texts)
        return EvaluationReport(
            model=record.model,
            version=record.version,
            kind=record.kind,
            bundle=record.digest,
            encoder=record.encoder,
            data=held_out.digest,
            held_out=HeldOutResult.measure(
                answers.scores, held_out.labels, held_out.sources, rounds=self._plan.rounds
            ),
            agreement=self._agreement(opened, held_out, answers.vectors),
            latency=opened.scorer.latency(texts),
            size=ModelSize(
                version_bytes=_size(opened.bundle),
                encoder_bytes=_size(opened.encoder) if opened.encoder is not None else 0,
            ),
            replay=replay,
            measured_at=datetime.now(UTC),
            seconds=round(time.monotonic() - started, 3),
            machine=f"{platform.machine()}, {os.cpu_count()} CPUs",
        )

    def _replay(
        self, opened: _Opened, champion: VersionRecord, stored: list[StoredText], texts: list[str]
    ) -> Replay | None:
        if not stored:
            return None
        judged = np.array([each.judged for each in stored])
        vectors = np.stack([each.vector for each in stored])
        rows, clusters = stratify(vectors, judged, size=self._plan.replayed, seed=self._plan.seed)
        sample = [stored[row] for row in rows]
        other = self._open(champion)
        said = [each.text for each in sample]
        return compare(
            candidate=opened.scorer.run(said).scores,
            champion=other.scorer.run(said).scores,
            text_ids=[str(each.text_id) for each in sample],
            clusters=clusters,
            judged=judged[rows],
            corrected=[each.corrected for each in sample],
            champion_version=champion.version,
            champion_bundle=champion.digest,
            champion_latency=other.scorer.latency(texts),
        )

    def _agreement(
        self, opened: _Opened, held_out: HeldOutSet, vectors: "np.ndarray[Any, np.dtype[np.float32]]"
    ) -> Agreement | None:
        if opened.encoder is None:
            return None
        own = self._encoder(self._space_encoder(), Engine.FP32)
        # Spread over the set, which is ordered by corpus.
        rows = np.unique(np.linspace(0, len(vectors) - 1, min(_COMPARED, len(vectors))).astype(np.int64))
        theirs = np.zeros((len(rows), own.settings.dimensions), np.float32)
        for micro in own.run([held_out.examples[row].text for row in rows]):
            theirs[micro.rows] = micro.embedding
        found = cosines(vectors[rows], theirs)
        return Agreement(
            space=self._space,
            claims_space=opened.claims_space,
            mean=round(float(found.mean()), 6),
            worst=round(float(found.min()), 6),
            texts=len(rows),
        )

    def _open(self, record: VersionRecord) -> _Opened:
        bundle = self._bundle(record)
        head = load_head(bundle)
        space = self._space_encoder()
        own = space if record.encoder is None else self._registry.encoder(record.encoder)
        claims = record.encoder is not None and own.space == self._space
        outside = record.encoder is not None and not claims
        scorer = OfflineScorer(
            head,
            self._encoder(own, self._plan.engine),
            space_encoder=self._encoder(space, self._plan.engine) if outside else None,
            rest=rest_to_share(self._plan.share),
        )
        return _Opened(
            record=record,
            scorer=scorer,
            bundle=bundle,
            encoder=None if record.encoder is None else self._bundle(own),
            claims_space=claims,
        )

    def _space_encoder(self) -> EncoderRecord:
        until = time.monotonic() + self._plan.patience
        while True:
            try:
                return self._registry.space_encoder(self._space)
            except NotRegistered:
                if time.monotonic() > until:
                    raise
                time.sleep(_POLL_SECONDS)

    def _encoder(self, record: EncoderRecord, engine: Engine | None) -> Encoder:
        key = (record.bundle, engine)
        if key not in self._encoders:
            self._encoders[key] = open_encoder(self._bundle(record), engine=engine, threads=1)
        return self._encoders[key]

    def _bundle(self, record: VersionRecord | EncoderRecord) -> Bundle:
        digest = record.bundle if isinstance(record, EncoderRecord) else record.digest
        if digest not in self._bundles:
            self._bundles[digest] = Bundle.open(self._registry.fetch(record, self._cache))
        return self._bundles[digest]


class EvaluationWorker:
    """A claimed evaluation from its row to its report: whatever goes wrong with the version is the row's reason."""

    def __init__(
        self,
        records: EvaluationRepository,
        replays: ReplayRepository,
        registry: Source,
        examiner: VersionEvaluator,
    ) -> None:
        self._records = records
        self._replays = replays
        self._registry = registry
        self._examiner = examiner

    async def do(self, evaluation: Evaluation, *, cache: Path, plan: EvaluationPlan) -> bool:
        """Whether a report was stored.

        Raises:
            DatabaseError: it can't be stored, so that the request stays and is taken up again.
        """
        beating = asyncio.create_task(self._beat(evaluation.id))
        try:
            report = await self._report(evaluation, cache, plan)
        except DatabaseError:
            raise
        except Exception as error:
            # Whatever a foreign bundle raises says something of the version, not of this program.
            reason = str(error) or type(error).__name__
            log.warning("evaluation.failed", evaluation=evaluation.id, reason=reason)
            await self._records.fail(evaluation.id, reason)
            return False
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError, DatabaseError):
                await beating
        return await self._records.finish(evaluation.id, report.dump())

    async def _report(self, evaluation: Evaluation, cache: Path, plan: EvaluationPlan) -> EvaluationReport:
        record = await asyncio.to_thread(self._registry.version, evaluation.model, evaluation.version)
        if record.digest != evaluation.bundle_digest:
            raise Invalid(f"version {evaluation.version} has another bundle now, {record.digest}")
        held_out = await asyncio.to_thread(self._registry.held_out, evaluation.model, cache)
        if held_out.digest != evaluation.data_digest:
            raise Invalid(f"the held-out set is another one now, {held_out.digest}")
        try:
            champion = await asyncio.to_thread(self._registry.champion, evaluation.model)
        except NotRegistered:
            champion = None
        stored = list(await self._replays.sample(evaluation.model, size=plan.drawn, judged=plan.judged))
        return await asyncio.to_thread(self._examiner.examine, record, held_out, champion, lambda: stored)

    async def _beat(self, evaluation_id: int) -> None:
        while True:
            with suppress(DatabaseError):
                await self._records.heartbeat(evaluation_id)
            await asyncio.sleep(_BEAT_SECONDS)


async def run(evaluation_id: int) -> int:
    """Works on a claimed evaluation: 0 with a report, else not."""
    from serving.core.connections import build_database, build_registry
    from serving.core.logs import configure_logging
    from serving.settings import Settings

    settings = Settings()
    configure_logging(settings.log_level, process="evaluation", file=settings.log_file)
    engine = None if settings.engine in ("auto", "torch") else Engine(settings.engine)
    plan = EvaluationPlan(
        replayed=settings.evaluation_texts,
        drawn=4 * settings.evaluation_texts,
        engine=engine,
        share=settings.evaluation_share,
    )
    registry, cache = build_registry(settings), settings.home / "cache"
    database = build_database(settings)
    await database.open()
    try:
        records = EvaluationRepository(database)
        evaluation = await records.get(evaluation_id)
        if evaluation.state != "running":
            return _ENDED
        log.info(
            "evaluation.begun", evaluation=evaluation_id, model=evaluation.model, version=evaluation.version
        )
        space = await SpaceRepository(database).ensure(settings.space)
        work = EvaluationWorker(
            records,
            ReplayRepository(database, space=space),
            registry,
            VersionEvaluator(registry, space=space, cache=cache, plan=plan),
        )
        return 0 if await work.do(evaluation, cache=cache, plan=plan) else _ENDED
    finally:
        await database.close()


def _size(bundle: Bundle) -> int:
    return sum(bundle.file(name).stat().st_size for name in bundle.manifest.files)


def main() -> int:
    """The process: it yields to everything else, and ends with the one that started it."""
    yield_to_others()
    try:
        return asyncio.run(run(int(sys.argv[1])))
    except (DatabaseError, RegistryError, ServingError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
