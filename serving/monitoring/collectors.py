"""What stands rather than happens: versions, replicas, pools, what is stored. Read when somebody looks.

`PlatformCollector` says the same at every ingress replica, so that the largest of several is the truth;
`ReplicaCollector` is one replica's own. Knows no SQL: the census is taken by a chore and read here as it was last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from db.analytics.statistics import AnswerDistribution, Distributions, Statistics
from db.connection.engine import PoolState
from registry.analysis.psi import compute_psi
from serving.core.catalog import Catalog
from serving.predictions.routing import Traffic


class StoredStatistics:
    """The last census and the last distributions, and whether the database answered."""

    def __init__(self) -> None:
        self.up = False
        self.census = Statistics()
        self.distributions = Distributions()

    def update(self, census: Statistics) -> None:
        """A census was taken."""
        self.census, self.up = census, True

    def clear(self) -> None:
        """The database did not answer: what was known of it is of the past, and no longer told."""
        self.up = False
        self.census = Statistics()
        self.distributions = Distributions()


class PlatformCollector(Collector):
    """The whole platform's figures, the same at every ingress replica."""

    def __init__(
        self,
        *,
        catalog: Callable[[], Catalog],
        traffic: Callable[[], Traffic],
        stored: StoredStatistics,
        version: str,
    ) -> None:
        self._catalog = catalog
        self._traffic = traffic
        self._stored = stored
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """The families, as they are now."""
        build = _gauge("valence_build_info", "1, with the release that runs.", "release")
        build.add_metric((self._version,), 1)
        yield build
        yield from _fleet(self._catalog(), self._traffic())
        yield from _census(self._stored.census)
        yield from _distributions(self._stored.distributions)


class ReplicaCollector(Collector):
    """One ingress process's own figures."""

    def __init__(self, *, pools: Callable[[], Sequence[PoolState]], stored: StoredStatistics) -> None:
        self._pools = pools
        self._stored = stored

    def collect(self) -> Iterator[Metric]:
        """The families, as they are now."""
        up = _gauge("valence_database_up", "Whether the database answered this process when it last asked.")
        up.add_metric((), float(self._stored.up))
        yield up
        sizes = _gauge("valence_database_pool_connections", "Connections of a pool.", "pool", "state")
        limits = _gauge("valence_database_pool_limit", "Most connections that a pool may hold.", "pool")
        waiting = _gauge("valence_database_pool_waiting", "Who waits for a connection.", "pool")
        for pool in self._pools():
            sizes.add_metric((pool.name, "idle"), pool.idle)
            sizes.add_metric((pool.name, "used"), max(0, pool.open - pool.idle))
            limits.add_metric((pool.name,), pool.limit)
            if pool.waiting is not None:
                waiting.add_metric((pool.name,), pool.waiting)
        yield from (sizes, limits, waiting)


def _fleet(catalog: Catalog, traffic: Traffic) -> Iterator[Metric]:
    states = _gauge(
        "valence_model_version_state",
        "1 for the state that a registered version is in.",
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


def _census(census: Statistics) -> Iterator[Metric]:
    rows = _gauge("valence_index_rows", "Vectors in segments of the index.", "space", "state")
    segments = _gauge("valence_index_segments", "Segments of the index.", "space", "state")
    backlog = _gauge("valence_backlog", "Work that was asked for and has not ended.", "kind", "state")
    oldest = _gauge("valence_backlog_oldest_seconds", "How long the oldest has waited to begin.", "kind")
    accuracy = _gauge(
        "valence_feedback_accuracy", "Share of the latest judged answers that were right.", "model", "version"
    )
    judged = _gauge("valence_feedback_judged", "The latest judged answers, in number.", "model", "version")
    for segment in census.segments:
        rows.add_metric((segment.space, segment.state), segment.rows)
        segments.add_metric((segment.space, segment.state), segment.segments)
    for state, count in census.evaluations.items():
        backlog.add_metric(("evaluation", state), count)
    if census.evaluations:
        oldest.add_metric(("evaluation",), census.oldest_waiting)
    for version, found in census.judged.items():
        accuracy.add_metric(version, found.right / found.judged)
        judged.add_metric(version, found.judged)
    yield from (rows, segments, backlog, oldest, accuracy, judged)


def _distributions(found: Distributions) -> Iterator[Metric]:
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
    for version, recent in found.recent.items():
        for label, count in recent.labels.items():
            share.add_metric((*version, label), count / recent.total)
        confidence.add_metric(version, recent.confidence)
        for of, index in measure_drift(found.reference.get(version, AnswerDistribution()), recent).items():
            drift.add_metric((*version, of), index)
    yield from (share, confidence, drift)


def measure_drift(reference: AnswerDistribution, recent: AnswerDistribution) -> Mapping[str, float]:
    """How far the recent answers lie from those of reference, by label and by confidence, where that can be said."""
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
