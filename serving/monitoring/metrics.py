"""What happens in one ingress process: every metric of it, with its labels and buckets.

Labels are bounded: route templates, never paths; no id, no text, no user. What stands rather than happens is in
`serving.monitoring.collectors`.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from db.predictions.submissions import NewPrediction
from serving.inference.dispatcher import EncoderClient, Inference, InferenceItem
from serving.predictions.service import Timing

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class BatchMetrics:
    """Counts one door's batches and what waits before it."""

    def __init__(self, sizes: Histogram, seconds: Histogram, waits: Gauge) -> None:
        self._sizes = sizes
        self._seconds = seconds
        self._waits = waits
        self._waiting = 0

    def observe_batch(self, items: int, seconds: float) -> None:
        """A batch of `items` ran for `seconds`."""
        self._sizes.observe(items)
        self._seconds.observe(seconds)

    def observe_waiting(self, weight: int) -> None:
        """This much waits at the door now."""
        # Several doors may bear one name, so each adds what it has.
        self._waits.inc(weight - self._waiting)
        self._waiting = weight


class Metrics(Collector):
    """One process's counters, in a registry of their own.

    Args:
        replica: a label on all of them. Where a proxy stands before several ingress replicas, whoever scrapes it meets
            now one and now another: by this label their counters stay apart.
    """

    def __init__(self, replica: str | None = None) -> None:
        self._replica = replica
        self._registry = registry = CollectorRegistry()
        self._collectors: list[Collector] = []
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
        self._errors = Counter("valence_errors", "Errors that were answered.", ("kind",), registry=registry)
        self._tokens = Counter(
            "valence_tokens", "Tokens that were read for answers.", ("encoder",), registry=registry
        )
        self._texts = Counter(
            "valence_texts", "Texts that an encoder answered.", ("encoder",), registry=registry
        )
        self._faults = Counter(
            "valence_text_faults",
            "Texts that an encoder's replicas did not answer.",
            ("encoder", "kind"),
            registry=registry,
        )
        ProcessCollector(registry=registry)
        self._queue, self._infer, self._store = (
            self._stage_seconds.labels(stage) for stage in ("queue", "infer", "store")
        )

    def observer_of(self, door: str) -> BatchMetrics:
        """The meter of the door with this name."""
        return BatchMetrics(
            self._batch_sizes.labels(door), self._batch_seconds.labels(door), self._waiting.labels(door)
        )

    def start_request(self) -> None:
        """A request is held from now on."""
        self._in_flight.inc()

    def end_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request has left."""
        self._in_flight.dec()
        self._requests.labels(method if method in _METHODS else "other", route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_error(self, kind: str) -> None:
        """A request was answered with an error of this kind."""
        self._errors.labels(kind).inc()

    def count_predictions(self, predictions: Iterable[NewPrediction]) -> None:
        """Predictions of one request are stored."""
        tally = Tally((each.model, each.version, each.arm, each.label) for each in predictions)
        for labels, count in tally.items():
            self._predictions.labels(*labels).inc(count)

    def observe_timing(self, timing: Timing) -> None:
        """A request for predictions is answered."""
        self._queue.observe(timing.queue_ms / 1e3)
        self._infer.observe(timing.infer_ms / 1e3)
        self._store.observe(timing.store_ms / 1e3)

    def count_texts(self, name: str, encoders: EncoderClient) -> EncoderClient:
        """The same replicas, and what they read is counted under this name."""
        return _CountedEncoders(
            encoders, name, self._texts.labels(name), self._tokens.labels(name), self._faults
        )

    def count_feedback(self, *, is_correct: bool) -> None:
        """A judgement is stored."""
        self._feedback.labels("true" if is_correct else "false").inc()

    def add_collector(self, collector: Collector, *, of_replica: bool) -> None:
        """Tell what stands, too; `of_replica` if it belongs to this process and not to the whole platform."""
        if of_replica:
            self._registry.register(collector)
        else:
            self._collectors.append(collector)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Every family, with the replica's name on what is its own."""
        for metric in self._registry.collect():
            if self._replica is not None:
                metric.samples = [
                    sample._replace(labels={**sample.labels, "replica": self._replica})
                    for sample in metric.samples
                ]
            yield metric
        for each in self._collectors:
            yield from each.collect()


class _CountedEncoders:
    """Encoders whose answers are counted, a batch at a time."""

    def __init__(
        self, encoders: EncoderClient, name: str, texts: Counter, tokens: Counter, faults: Counter
    ) -> None:
        self._encoders = encoders
        self._name = name
        self._texts = texts
        self._tokens = tokens
        self._faults = faults

    async def infer(self, items: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        """`Encoders.infer`."""
        try:
            results = await self._encoders.infer(items, bulk=bulk)
        except Exception as error:
            self._fault(error, len(items))
            raise
        tokens = texts = 0
        for result in results:
            if isinstance(result, Inference):
                tokens += result.tokens
                texts += 1
            else:
                self._fault(result, 1)
        self._texts.inc(texts)
        self._tokens.inc(tokens)
        return results

    def _fault(self, error: Exception, texts: int) -> None:
        self._faults.labels(self._name, type(error).__name__).inc(texts)
