"""Use cases of what is stored as a whole: topics, drift, where versions differ, what to judge next.

For engineers: they look at everybody's texts. Knows no HTTP and no SQL. Each reads a bounded sample, and computes
beside serving.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, Protocol, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.analytics.disagreements import Disagreement, Disagreements
from db.analytics.labels import LabelledText
from db.analytics.windows import JudgedPrediction, SampledText, Window
from registry.analysis.clusters import TextCluster, cluster_vectors, find_distinctive_words
from registry.analysis.mmd import compute_mmd, find_novel
from registry.analysis.neighbour_vote import score_informativeness, select_diverse
from registry.analysis.psi import compute_psi
from registry.bundles.bundle import LABELS
from serving.analytics.results import (
    Accuracy,
    DisagreementCluster,
    Drift,
    Review,
    ReviewCandidate,
    SampleSummary,
    TimeRange,
    Topic,
    Topics,
    VersionDiff,
)
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.core.executor import BackgroundExecutor
from serving.search.label_suggestions import HEARD
from serving.search.service import DUPLICATE

TOPIC_TEXTS: Final = 2_000
REVIEW_TEXTS: Final = 1_000
REVIEW_TRUTHS: Final = 1_000
DIFF_TEXTS: Final = 1_000
DRIFT_TEXTS: Final = 1_000
# The kernel compares every text with every other.
KERNEL_TEXTS: Final = 500
EXAMPLES: Final = 3
BINS: Final = 10
ALPHA: Final = 0.01
RECENT: Final = timedelta(days=7)
DRIFT_RECENT: Final = timedelta(days=1)

Vectors: TypeAlias = NDArray[np.float32]


class WindowRecords(Protocol):
    """Samples of stored texts by time."""

    async def sample(self, model: str, window: Window, *, size: int, seed: int = 0) -> Sequence[SampledText]:
        """Texts of a window."""

    async def list_judged(
        self, model: str, window: Window, text_ids: Sequence[UUID]
    ) -> Sequence[JudgedPrediction]:
        """The judged predictions of texts."""


class JudgedTexts(Protocol):
    """The texts that were judged last."""

    async def latest(self, model: str, *, most: int) -> Sequence[LabelledText]:
        """Those of them whose right label is told."""


class ContrastRecords(Protocol):
    """What two versions said of the same texts."""

    async def compare(
        self,
        model: str,
        one: str,
        other: str,
        window: Window,
        *,
        one_label: str | None = None,
        other_label: str | None = None,
        size: int,
    ) -> Disagreements:
        """Where they differ."""


class AnalyticsService:
    """What the memory shows when all of it is looked at. Changes nothing."""

    def __init__(
        self,
        *,
        windows: WindowRecords,
        truths: JudgedTexts,
        contrasts: ContrastRecords,
        catalog: Callable[[], Catalog],
        aside: BackgroundExecutor,
        default_model: str,
    ) -> None:
        self._windows = windows
        self._truths = truths
        self._contrasts = contrasts
        self._catalog = catalog
        self._aside = aside
        self._default_model = default_model

    async def topics(self, model: str | None, span: TimeRange, *, most: int = 12) -> Topics:
        """At most `most` topics of a window.

        Raises:
            NotFound: no such model.
            Overloaded: too many analyses are under way.
        """
        model = self._model(model)
        window = span.window(RECENT)
        with translate_database_errors():
            sample = await self._windows.sample(model, window, size=TOPIC_TEXTS)
            judged = await self._windows.list_judged(model, window, [each.text_id for each in sample])
        topics = await self._aside.run(lambda: _topics(sample, judged, most))
        return Topics(model=model, window=window, sampled=len(sample), topics=topics)

    async def review(self, model: str | None, span: TimeRange, *, most: int = 20) -> Review:
        """At most `most` texts without feedback, the one that it would teach most of first.

        Raises:
            NotFound: no such model.
            Overloaded: too many analyses are under way.
        """
        model = self._model(model)
        window = span.window(RECENT)
        with translate_database_errors():
            sample = await self._windows.sample(model, window, size=REVIEW_TEXTS)
            truths = await self._truths.latest(model, most=REVIEW_TRUTHS)
        candidates = [each for each in sample if not each.judged]
        items = await self._aside.run(lambda: _review(candidates, truths, most))
        return Review(model=model, window=window, candidates=len(candidates), judged=len(truths), items=items)

    async def diff(
        self,
        model: str,
        one: str,
        other: str,
        span: TimeRange,
        *,
        one_label: str | None = None,
        other_label: str | None = None,
        most: int = 8,
    ) -> VersionDiff:
        """The texts on which two versions differ, in at most `most` clusters.

        Raises:
            NotFound: no such model or version.
            Overloaded: too many analyses are under way.
        """
        for version in (one, other):
            self._catalog().entry(model, version)
        window = span.window(RECENT)
        with translate_database_errors():
            found = await self._contrasts.compare(
                model, one, other, window, one_label=one_label, other_label=other_label, size=DIFF_TEXTS
            )
        clusters = await self._aside.run(lambda: _clusters(found.differences, most))
        return VersionDiff(
            model=model,
            window=window,
            matrix=found.matrix,
            sampled=len(found.differences),
            clusters=clusters,
            complete=found.complete,
        )

    async def drift(
        self, model: str | None, recent: TimeRange, reference: TimeRange, *, most: int = 10
    ) -> Drift:
        """How the recent window differs from the reference, which ends where that begins unless said otherwise.

        Raises:
            NotFound: no such model.
            Overloaded: too many analyses are under way.
        """
        model = self._model(model)
        now = recent.window(DRIFT_RECENT)
        then = reference.window(RECENT, until=now.since)
        with translate_database_errors():
            new = await self._windows.sample(model, now, size=DRIFT_TEXTS, seed=1)
            old = await self._windows.sample(model, then, size=DRIFT_TEXTS, seed=2)
        return await self._aside.run(lambda: _drift(model, _mix(then, old), old, _mix(now, new), new, most))

    def _model(self, name: str | None) -> str:
        """The model that is meant, if there is one of this name."""
        model = name or self._default_model
        self._catalog().versions(model)
        return model


def _vectors(texts: Sequence[SampledText] | Sequence[Disagreement] | Sequence[LabelledText]) -> Vectors:
    """float32 [n, d]"""
    return np.stack([each.vector for each in texts]) if texts else np.zeros((0, 0), np.float32)


def _groups(
    texts: Sequence[SampledText] | Sequence[Disagreement], most: int
) -> list[tuple[TextCluster, list[str]]]:
    groups = cluster_vectors(_vectors(texts), max_clusters=most)
    return list(zip(groups, find_distinctive_words([each.text for each in texts], groups), strict=True))


def _topics(sample: Sequence[SampledText], judged: Sequence[JudgedPrediction], most: int) -> list[Topic]:
    judgements: dict[UUID, list[JudgedPrediction]] = {}
    for each in judged:
        judgements.setdefault(each.text_id, []).append(each)
    topics = []
    for group, words in _groups(sample, most):
        members = [sample[row] for row in group.rows]
        given = [each for member in members for each in judgements.get(member.text_id, ())]
        versions = sorted({each.version for each in given}, key=lambda version: (len(version), version))
        topics.append(
            Topic(
                texts=len(members),
                words=words,
                sentiments=Counter(member.label for member in members),
                accuracy=[
                    Accuracy(
                        version=version,
                        judged=sum(each.version == version for each in given),
                        right=sum(each.version == version and each.is_correct for each in given),
                    )
                    for version in versions
                ],
                examples=[
                    (member, float(cosine))
                    for member, cosine in zip(members[:EXAMPLES], group.cosines[:EXAMPLES], strict=True)
                ],
            )
        )
    return topics


def _review(
    candidates: Sequence[SampledText], truths: Sequence[LabelledText], most: int
) -> list[ReviewCandidate]:
    if not candidates:
        return []
    vectors = _vectors(candidates)
    scores = np.array([[each.scores[label] for label in LABELS] for each in candidates], np.float64)
    labels = [LABELS.index(each.label) for each in truths]
    found = score_informativeness(scores, vectors, _vectors(truths), labels, min_cosine=HEARD)
    return [
        ReviewCandidate(
            text=candidates[row],
            score=float(found.score[row]),
            uncertainty=float(found.uncertainty[row]),
            density=float(found.density[row]),
            disagreement=float(found.disagreement[row]),
        )
        for row in select_diverse(found.score, vectors, limit=most, max_cosine=DUPLICATE)
    ]


def _clusters(differences: Sequence[Disagreement], most: int) -> list[DisagreementCluster]:
    return [
        DisagreementCluster(
            texts=len(group.rows),
            words=words,
            examples=[differences[row] for row in group.rows[:EXAMPLES]],
        )
        for group, words in _groups(differences, most)
    ]


def _mix(window: Window, sample: Sequence[SampledText]) -> SampleSummary:
    bins = [0] * BINS
    for each in sample:
        bins[min(int(each.confidence * BINS), BINS - 1)] += 1
    return SampleSummary(
        window=window,
        sampled=len(sample),
        labels=Counter(each.label for each in sample),
        confidences=bins,
        versions=Counter(each.version for each in sample),
        confidence=sum(each.confidence for each in sample) / len(sample) if sample else None,
    )


def _drift(
    model: str,
    reference: SampleSummary,
    old: Sequence[SampledText],
    recent: SampleSummary,
    new: Sequence[SampledText],
    most: int,
) -> Drift:
    before, after = _vectors(old), _vectors(new)
    # Samples come in the order of time, so that a part is taken from all over it.
    return Drift(
        model=model,
        recent=recent,
        reference=reference,
        embeddings=compute_mmd(_spread(before, KERNEL_TEXTS), _spread(after, KERNEL_TEXTS)),
        labels=compute_psi(
            [reference.labels.get(label, 0) for label in LABELS],
            [recent.labels.get(label, 0) for label in LABELS],
        ),
        confidences=compute_psi(reference.confidences, recent.confidences),
        novel=[(new[each.row], each.nearest) for each in find_novel(before, after, limit=most)],
    )


def _spread(vectors: Vectors, most: int) -> Vectors:
    """At most so many of the rows, at even distances."""
    if len(vectors) <= most:
        return vectors
    return vectors[np.linspace(0, len(vectors) - 1, most).round().astype(np.int64)]
