"""Analytics over the stored predictions: topics, drift, disagreements of versions, and texts to judge next.

For engineers: the texts of all holders are read. Knows no HTTP and no SQL. Each analysis reads a bounded sample and
computes on the background thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from db.analytics.disagreements import DisagreementRepository
from db.analytics.labels import LabelRepository
from db.analytics.windows import SampledText, WindowRepository
from serving.analytics.computations import cluster_differences, group_topics, measure_drift, rank_for_review
from serving.analytics.results import Drift, Review, TimeRange, Topics, VersionDiff
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.core.executor import BackgroundExecutor

TOPIC_TEXTS: Final = 2_000
REVIEW_TEXTS: Final = 1_000
REVIEW_LABELS: Final = 1_000
DIFF_TEXTS: Final = 1_000
# Texts of the window that the words of the differing ones are compared with.
DIFF_BACKGROUND: Final = 1_000
DRIFT_TEXTS: Final = 1_000
WINDOW: Final = timedelta(days=7)
DRIFT_WINDOW: Final = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyticsService:
    """Analyses change nothing that is stored."""

    windows: WindowRepository
    labels: LabelRepository
    disagreements: DisagreementRepository
    catalog: Callable[[], Catalog]
    executor: BackgroundExecutor
    default_model: str

    async def find_topics(self, model: str | None, time_range: TimeRange, *, most: int = 12) -> Topics:
        """Return at most `most` topics of a window.

        Raises:
            NotFound: no such model.
            Overloaded: too many analyses wait already.
        """
        model = self._model(model)
        window = time_range.window(WINDOW)
        with translate_database_errors():
            sample = await self.windows.sample(model, window, size=TOPIC_TEXTS)
            judged = await self.windows.list_judged(model, window, [each.text_id for each in sample.texts])
        topics = await self.executor.run(lambda: group_topics(sample.texts, judged, most))
        return Topics(
            model=model, window=window, coverage=sample.coverage, sampled=len(sample.texts), topics=topics
        )

    async def select_for_review(self, model: str | None, time_range: TimeRange, *, most: int = 20) -> Review:
        """Return at most `most` texts without feedback, those first whose feedback would teach most.

        Without texts that are mostly unknown to their encoder.

        Raises:
            NotFound: no such model.
            Overloaded: too many analyses wait already.
        """
        model = self._model(model)
        window = time_range.window(WINDOW)
        with translate_database_errors():
            sample = await self.windows.sample(model, window, size=REVIEW_TEXTS)
            labelled = await self.labels.latest(model, most=REVIEW_LABELS)
        candidates = [each for each in sample.texts if not each.judged and not each.mostly_unknown]
        items = await self.executor.run(lambda: rank_for_review(candidates, labelled, most))
        return Review(
            model=model,
            window=window,
            coverage=sample.coverage,
            candidates=len(candidates),
            judged=len(labelled),
            items=items,
        )

    async def compare_versions(
        self,
        model: str,
        one: str,
        other: str,
        time_range: TimeRange,
        *,
        one_label: str | None = None,
        other_label: str | None = None,
        most: int = 8,
    ) -> VersionDiff:
        """Return the texts on which two versions disagree, in at most `most` clusters.

        Raises:
            NotFound: no such model or version.
            Overloaded: too many analyses wait already.
        """
        for version in (one, other):
            self.catalog().entry(model, version)
        window = time_range.window(WINDOW)
        with translate_database_errors():
            comparison = await self.disagreements.compare(
                model, one, other, window, one_label=one_label, other_label=other_label, size=DIFF_TEXTS
            )
            differences = comparison.differences
            background: Sequence[SampledText] = ()
            if differences:
                background = (await self.windows.sample(model, window, size=DIFF_BACKGROUND)).texts
        clusters = await self.executor.run(lambda: cluster_differences(differences, background, most))
        return VersionDiff(
            model=model,
            window=window,
            matrix=comparison.matrix,
            sampled=len(differences),
            clusters=clusters,
            complete=comparison.complete,
        )

    async def measure_drift(
        self, model: str | None, recent: TimeRange, reference: TimeRange, *, most: int = 10
    ) -> Drift:
        """Compare a recent window with a reference window, which by default ends where the recent one begins.

        Raises:
            NotFound: no such model.
            Overloaded: too many analyses wait already.
        """
        model = self._model(model)
        now = recent.window(DRIFT_WINDOW)
        then = reference.window(WINDOW, until=now.since)
        with translate_database_errors():
            new = await self.windows.sample(model, now, size=DRIFT_TEXTS, seed=1)
            old = await self.windows.sample(model, then, size=DRIFT_TEXTS, seed=2)
        return await self.executor.run(lambda: measure_drift(model, (then, old), (now, new), most))

    def _model(self, name: str | None) -> str:
        """Return the named model, or the default one. Raises NotFound if there is no such model."""
        model = name or self.default_model
        self.catalog().versions(model)
        return model
