"""Every metric's name, its labels and its buckets.

Labels are bounded: route templates, never paths; no id, no text, no user.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from serving.catalogue import Catalogue
from serving.gateway import Timing
from serving.prediction import Prediction

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class DoorMeter:
    """Counts one door's batches and what waits before it."""

    def __init__(self, sizes: Histogram, seconds: Histogram, waits: Gauge) -> None:
        self._sizes = sizes
        self._seconds = seconds
        self._waits = waits
        self._waiting = 0

    def batch(self, items: int, seconds: float) -> None:
        """A batch of `items` ran for `seconds`."""
        self._sizes.observe(items)
        self._seconds.observe(seconds)

    def waiting(self, weight: int) -> None:
        """This much waits at the door now."""
        # Several doors may bear one name, so each adds what it has.
        self._waits.inc(weight - self._waiting)
        self._waiting = weight


class Metrics:
    """One process's counters, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "valence_http_requests", "Answered requests.", ("method", "route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "valence_http_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge("valence_http_requests_in_flight", "Requests held now.", registry=registry)
        self._stage_seconds = Histogram(
            "valence_prediction_stage_duration_seconds",
            "Where a prediction request's time went.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._predictions = Counter(
            "valence_predictions",
            "Stored predictions.",
            ("model", "version", "arm", "sentiment"),
            registry=registry,
        )
        self._feedback = Counter("valence_feedback", "Stored judgements.", ("is_correct",), registry=registry)
        self._batch_sizes = Histogram(
            "valence_batch_size", "Items in a batch.", ("door",), buckets=_SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "valence_batch_duration_seconds",
            "Time a batch ran.",
            ("door",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._waiting = Gauge("valence_queue_weight", "What waits at a door.", ("door",), registry=registry)
        self._versions = Gauge(
            "valence_model_version_state",
            "1 for the state that a registered version is in.",
            ("model", "version", "state"),
            registry=registry,
        )
        self._champion = Gauge(
            "valence_model_champion",
            "1 for the version that answers.",
            ("model", "version"),
            registry=registry,
        )
        self._queue, self._infer, self._store = (
            self._stage_seconds.labels(stage) for stage in ("queue", "infer", "store")
        )

    def meter(self, door: str) -> DoorMeter:
        """The meter of the door with this name."""
        return DoorMeter(
            self._batch_sizes.labels(door), self._batch_seconds.labels(door), self._waiting.labels(door)
        )

    def arrived(self) -> None:
        """A request is held from now on."""
        self._in_flight.inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request has left."""
        self._in_flight.dec()
        self._requests.labels(method if method in _METHODS else "other", route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def predicted(self, predictions: Iterable[Prediction], timing: Timing) -> None:
        """Predictions of one request are stored."""
        for prediction in predictions:
            self._predictions.labels(
                prediction.model, prediction.version, prediction.arm, prediction.label
            ).inc()
        self._queue.observe(timing.queue_ms / 1e3)
        self._infer.observe(timing.infer_ms / 1e3)
        self._store.observe(timing.store_ms / 1e3)

    def judged(self, *, is_correct: bool) -> None:
        """A judgement is stored."""
        self._feedback.labels("true" if is_correct else "false").inc()

    def exposition(self, catalogue: Catalogue) -> bytes:
        """Everything, in Prometheus' text format, with the versions as the catalogue has them."""
        self._versions.clear()
        self._champion.clear()
        for model, versions in catalogue.models.items():
            for version, entry in versions.items():
                self._versions.labels(model, version, entry.state).set(1)
        for model, version in catalogue.champions.items():
            self._champion.labels(model, version).set(1)
        return generate_latest(self._registry)
