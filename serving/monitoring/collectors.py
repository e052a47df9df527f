"""Metrics of state: versions, replicas, pools and stored rows, read when the metrics are scraped.

`PlatformCollector` reports the same at every ingress replica, so the largest of several values is the truth;
`ReplicaCollector` reports one replica. Knows no SQL: a background task reads the statistics, which are kept here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from db.analytics.statistics import AnswerDistribution, Distributions, Statistics
from db.connection.engine import PoolState
from registry.analysis.psi import compute_psi
from serving.core.catalog import Catalog
from serving.predictions.routing import Traffic


class StoredStatistics:
    """The last statistics of what is stored, and whether the database answered."""

    def __init__(self) -> None:
        self.up = False
        self.statistics = Statistics()
        self.distributions = Distributions()

    def update(self, statistics: Statistics) -> None:
        """Keep new statistics."""
        self.statistics, self.up = statistics, True

    def clear(self) -> None:
        """Forget the statistics, because the database did not answer."""
        self.up = False
        self.statistics = Statistics()
        self.distributions = Distributions()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlatformCollector(Collector):
    """Collects the metrics of the whole platform, the same at every ingress replica."""

    catalog: Callable[[], Catalog]
    traffic: Callable[[], Traffic]
    stored: StoredStatistics
    version: str

    def collect(self) -> Iterator[Metric]:
        """Yield the present metrics."""
        build = _gauge("valence_build_info", "1, labelled with the running release.", "release")
        build.add_metric((self.version,), 1)
        yield build
        yield from _catalog_metrics(self.catalog(), self.traffic())
        yield from _collect_statistics(self.stored.statistics)
        yield from _collect_distributions(self.stored.distributions)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ReplicaCollector(Collector):
    """Collects the metrics of one ingress process."""

    pools: Callable[[], Sequence[PoolState]]
    stored: StoredStatistics

    def collect(self) -> Iterator[Metric]:
        """Yield the present metrics."""
        up = _gauge("valence_database_up", "Whether the database answered this process the last time.")
        up.add_metric((), float(self.stored.up))
        yield up
        sizes = _gauge("valence_database_pool_connections", "Connections of a pool.", "pool", "state")
        limits = _gauge("valence_database_pool_limit", "Maximum number of connections of a pool.", "pool")
        waiting = _gauge("valence_database_pool_waiting", "Requests that wait for a connection.", "pool")
        for pool in self.pools():
            sizes.add_metric((pool.name, "idle"), pool.idle)
            sizes.add_metric((pool.name, "used"), max(0, pool.open - pool.idle))
            limits.add_metric((pool.name,), pool.limit)
            if pool.waiting is not None:
                waiting.add_metric((pool.name,), pool.waiting)
        yield from (sizes, limits, waiting)


def _catalog_metrics(catalog: Catalog, traffic: Traffic) -> Iterator[Metric]:
    states = _gauge(
        "valence_model_version_state",
        "1 for the present state of a registered version.",
        "model",
        "version",
        "state",
    )
    champions = _gauge("valence_model_champion", "1 for the version that answers.", "model", "version")
    replicas = _gauge("valence_encoder_replicas", "Replicas of an encoder by state.", "encoder", "state")
    shares = _gauge(
        "valence_experiment_share",
        "Share of the challenger in the running experiment.",
        "model",
        "version",
        "kind",
    )
    for model, versions in catalog.models.items():
        for version, entry in versions.items():
            states.add_metric((model, version, entry.state), 1)
    for model, version in catalog.champions.items():
        champions.add_metric((model, version), 1)
    for encoder, counts in catalog.replicas.items():
        for state, count in counts.items():
            replicas.add_metric((encoder, state), count)
    for model, split in traffic.splits.items():
        shares.add_metric((model, split.challenger, "shadow" if split.shadow else "split"), split.share)
    yield from (states, champions, replicas, shares)


def _collect_statistics(statistics: Statistics) -> Iterator[Metric]:
    rows = _gauge("valence_index_rows", "Vectors in segments of the index.", "space", "state")
    segments = _gauge("valence_index_segments", "Segments of the index.", "space", "state")
    backlog = _gauge("valence_backlog", "Requested work that has not ended.", "kind", "state")
    oldest = _gauge("valence_backlog_oldest_seconds", "Seconds that the oldest has waited to begin.", "kind")
    accuracy = _gauge(
        "valence_feedback_accuracy",
        "Share of correct answers among the latest with feedback.",
        "model",
        "version",
    )
    judged = _gauge(
        "valence_feedback_judged", "Number of the latest answers with feedback.", "model", "version"
    )
    for segment in statistics.segments:
        rows.add_metric((segment.space, segment.state), segment.rows)
        segments.add_metric((segment.space, segment.state), segment.segments)
    for state, count in statistics.evaluations.items():
        backlog.add_metric(("evaluation", state), count)
    if statistics.evaluations:
        oldest.add_metric(("evaluation",), statistics.oldest_waiting)
    for version, answers in statistics.judged.items():
        accuracy.add_metric(version, answers.right / answers.judged)
        judged.add_metric(version, answers.judged)
    yield from (rows, segments, backlog, oldest, accuracy, judged)


def _collect_distributions(distributions: Distributions) -> Iterator[Metric]:
    share = _gauge(
        "valence_recent_label_share",
        "Share of a label in a version's latest answers.",
        "model",
        "version",
        "sentiment",
    )
    confidence = _gauge(
        "valence_recent_confidence", "Mean confidence of a version's latest answers.", "model", "version"
    )
    drift = _gauge(
        "valence_drift_psi",
        "Population stability index of a version's latest answers against the week before.",
        "model",
        "version",
        "of",
    )
    for version, recent in distributions.recent.items():
        for label, count in recent.labels.items():
            share.add_metric((*version, label), count / recent.total)
        confidence.add_metric(version, recent.confidence)
        for of, index in measure_drift(
            distributions.reference.get(version, AnswerDistribution()), recent
        ).items():
            drift.add_metric((*version, of), index)
    yield from (share, confidence, drift)


def measure_drift(reference: AnswerDistribution, recent: AnswerDistribution) -> Mapping[str, float]:
    """Return the stability index of the recent answers against the reference, by label and by confidence."""
    labels = sorted(reference.labels.keys() | recent.labels.keys())
    indices = {
        "label": compute_psi(
            [reference.labels.get(label, 0) for label in labels],
            [recent.labels.get(label, 0) for label in labels],
        ),
        "confidence": compute_psi(reference.confidences, recent.confidences),
    }
    return {of: index for of, index in indices.items() if index is not None}


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)
