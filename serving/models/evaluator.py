"""Measure a version: quality on the held-out set, agreement of vectors, latency, size, and a replay of stored texts."""

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from db.analytics.replay import StoredText
from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import Engine
from registry.data.held_out import HeldOutSet
from registry.errors import NotRegistered
from registry.evaluation.replay import compare, stratify
from registry.evaluation.report import Agreement, EvaluationReport, HeldOutResult, ModelSize, Replay
from registry.store.records import EncoderRecord, VersionRecord
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder
from serving.inference.heads import load_head
from serving.inference.offline import OfflineScorer, cosines, embed_texts, rest_to_share

if TYPE_CHECKING:
    from registry.store.model_registry import ModelRegistry

_POLL_SECONDS: Final = 1.0
_COMPARED_TEXTS: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """The extent of an evaluation.

    Attributes:
        replayed: the number of stored texts that are replayed.
        drawn: the number of stored texts that they are drawn from.
        judged: the number of these that have feedback, at most.
        rounds: the rounds of the bootstrap.
        engine: the engine that scores, None for the bundle's own.
        seed: the seed of the sample.
        encoder_timeout: seconds to wait for the space's encoder, which a new installation builds after the champion's.
        share: the share of the time that may be spent on scoring, so that serving is hardly disturbed.
    """

    replayed: int = 1000
    drawn: int = 4000
    judged: int = 2000
    rounds: int = 1000
    engine: Engine | None = None
    seed: int = 0
    encoder_timeout: float = 180.0
    share: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _LoadedVersion:
    """A version and its encoder, ready to score."""

    record: VersionRecord
    scorer: OfflineScorer
    bundle: Bundle
    encoder: Bundle | None
    claims_space: bool


class VersionEvaluator:
    """Measures versions; each bundle is opened once, and fetched only if the cache lacks it."""

    def __init__(
        self, registry: "ModelRegistry", *, space: str, cache: Path, plan: EvaluationPlan | None = None
    ) -> None:
        self._registry = registry
        self._space = space
        self._cache = cache
        self._plan = plan or EvaluationPlan()
        self._encoders: dict[tuple[str, Engine | None], Encoder] = {}
        self._bundles: dict[str, Bundle] = {}

    def evaluate(
        self,
        record: VersionRecord,
        held_out: HeldOutSet,
        champion: VersionRecord | None,
        stored: list[StoredText],
    ) -> EvaluationReport:
        """Measure a version on a held-out set, and against the champion on `stored` texts.

        Raises:
            RegistryError: a bundle can't be fetched, verified or loaded.
            Invalid: the version gives no usable answer.
        """
        started = time.monotonic()
        loaded = self._open(record)
        texts = held_out.texts
        answers = loaded.scorer.run(texts)
        replay = None
        if champion is not None and champion.digest != record.digest:
            replay = self._replay(loaded, champion, stored, texts)
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
            agreement=self._agreement(loaded, held_out, answers.vectors),
            latency=loaded.scorer.latency(texts),
            size=ModelSize(
                version_bytes=_size(loaded.bundle),
                encoder_bytes=_size(loaded.encoder) if loaded.encoder is not None else 0,
            ),
            replay=replay,
            measured_at=datetime.now(UTC),
            seconds=round(time.monotonic() - started, 3),
            machine=f"{platform.machine()}, {os.cpu_count()} CPUs",
        )

    def _replay(
        self, loaded: _LoadedVersion, champion: VersionRecord, stored: list[StoredText], texts: list[str]
    ) -> Replay | None:
        if not stored:
            return None
        judged = np.array([each.judged for each in stored])
        vectors = np.stack([each.vector for each in stored])
        rows, clusters = stratify(vectors, judged, size=self._plan.replayed, seed=self._plan.seed)
        sample = [stored[row] for row in rows]
        other = self._open(champion)
        replayed = [each.text for each in sample]
        return compare(
            candidate=loaded.scorer.run(replayed).scores,
            champion=other.scorer.run(replayed).scores,
            text_ids=[str(each.text_id) for each in sample],
            clusters=clusters,
            judged=judged[rows],
            corrected=[each.corrected for each in sample],
            champion_version=champion.version,
            champion_bundle=champion.digest,
            champion_latency=other.scorer.latency(texts),
        )

    def _agreement(
        self, loaded: _LoadedVersion, held_out: HeldOutSet, vectors: NDArray[np.float32]
    ) -> Agreement | None:
        if loaded.encoder is None:
            return None
        reference = self._encoder(self._space_encoder(), Engine.FP32)
        # Evenly spaced rows, because the set is ordered by corpus.
        rows = np.unique(
            np.linspace(0, len(vectors) - 1, min(_COMPARED_TEXTS, len(vectors))).astype(np.int64)
        )
        expected = embed_texts(reference, [held_out.examples[row].text for row in rows])
        agreement = cosines(vectors[rows], expected)
        return Agreement(
            space=self._space,
            claims_space=loaded.claims_space,
            mean=round(float(agreement.mean()), 6),
            worst=round(float(agreement.min()), 6),
            texts=len(rows),
        )

    def _open(self, record: VersionRecord) -> _LoadedVersion:
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
        return _LoadedVersion(
            record=record,
            scorer=scorer,
            bundle=bundle,
            encoder=None if record.encoder is None else self._bundle(own),
            claims_space=claims,
        )

    def _space_encoder(self) -> EncoderRecord:
        until = time.monotonic() + self._plan.encoder_timeout
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


def _size(bundle: Bundle) -> int:
    return sum(bundle.file(name).stat().st_size for name in bundle.manifest.files)
