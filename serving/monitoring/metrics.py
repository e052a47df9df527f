"""Metrics of events in one ingress process, with their labels and buckets.

Labels are bounded: route templates instead of paths, and no ids, texts or users. Metrics of state are in
`serving.monitoring.collectors`.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
    """Counts one batcher's batches and the weight that waits for it."""

    def __init__(self, sizes: Histogram, seconds: Histogram, waits: Gauge) -> None:
        self._sizes = sizes
        self._seconds = seconds
        self._waits = waits
        self._waiting = 0

    def observe_batch(self, items: int, seconds: float) -> None:
        """Record a batch of `items` that ran for `seconds`."""
        self._sizes.observe(items)
        self._seconds.observe(seconds)

    def observe_waiting(self, weight: int) -> None:
        """Record the weight that waits now."""
        # Several batchers may have one name, so each adds its own weight.
        self._waits.inc(weight - self._waiting)
        self._waiting = weight


class Metrics(Collector):
    """The metrics of one process, in their own registry.

    Args:
        replica: a label on all of them. It separates the counters of ingress replicas that are scraped through one
            proxy, which answers from one replica now and from another later.
    """

    def __init__(self, replica: str | None = None) -> None:
        self._replica = replica
        self._registry = registry = CollectorRegistry()
        self._collectors: list[Collector] = []
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self._requests = counter("valence_http_requests", "Answered requests.", ("method", "route", "status"))
        self._request_seconds = histogram(
            "valence_http_request_duration_seconds",
            "Time from the first byte of a request to the last byte of its answer.",
            ("route",),
            buckets=_SECONDS,
        )
        self._in_flight = gauge("valence_http_requests_in_flight", "Requests in flight.")
        self._stage_seconds = histogram(
            "valence_prediction_stage_duration_seconds",
            "Time of a prediction request in each stage.",
            ("stage",),
            buckets=_SECONDS,
        )
        self._predictions = counter(
            "valence_predictions", "Stored predictions.", ("model", "version", "arm", "sentiment")
        )
        self._feedback = counter("valence_feedback", "Stored feedback.", ("is_correct",))
        self._batch_sizes = histogram("valence_batch_size", "Items in a batch.", ("door",), buckets=_SIZES)
        self._batch_seconds = histogram(
            "valence_batch_duration_seconds", "Duration of a batch.", ("door",), buckets=_SECONDS
        )
        self._waiting = gauge("valence_queue_weight", "Weight that waits for a batcher.", ("door",))
        self._errors = counter("valence_errors", "Requests answered with an error.", ("kind",))
        self._tokens = counter("valence_tokens", "Tokens that an encoder read for answers.", ("encoder",))
        self._texts = counter("valence_texts", "Texts that an encoder answered.", ("encoder",))
        self._faults = counter(
            "valence_text_faults",
            "Texts that the replicas of an encoder did not answer.",
            ("encoder", "kind"),
        )
        ProcessCollector(registry=registry)
        self._queue, self._infer, self._store = (
            self._stage_seconds.labels(stage) for stage in ("queue", "infer", "store")
        )

    def observer_of(self, batcher: str) -> BatchMetrics:
        """Return the observer of the batchers with this name."""
        return BatchMetrics(
            self._batch_sizes.labels(batcher),
            self._batch_seconds.labels(batcher),
            self._waiting.labels(batcher),
        )

    def start_request(self) -> None:
        """Count a request as in flight."""
        self._in_flight.inc()

    def end_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._in_flight.dec()
        self._requests.labels(method if method in _METHODS else "other", route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_error(self, kind: str) -> None:
        """Count a request that is answered with this kind of error."""
        self._errors.labels(kind).inc()

    def count_predictions(self, predictions: Iterable[NewPrediction]) -> None:
        """Count the stored predictions of one request."""
        tally = Tally((each.model, each.version, each.arm, each.label) for each in predictions)
        for labels, count in tally.items():
            self._predictions.labels(*labels).inc(count)

    def observe_timing(self, timing: Timing) -> None:
        """Record the stages of one prediction request."""
        self._queue.observe(timing.queue_ms / 1e3)
        self._infer.observe(timing.infer_ms / 1e3)
        self._store.observe(timing.store_ms / 1e3)

    def count_texts(self, name: str, encoders: EncoderClient) -> EncoderClient:
        """Return the encoders, with their texts, tokens and faults counted under this name."""
        return _CountedEncoders(
            encoders, name, self._texts.labels(name), self._tokens.labels(name), self._faults
        )

    def count_feedback(self, *, is_correct: bool) -> None:
        """Count a stored feedback."""
        self._feedback.labels("true" if is_correct else "false").inc()

    def add_collector(self, collector: Collector, *, of_replica: bool) -> None:
        """Add metrics of state; `of_replica` if they belong to this process and not to the whole platform."""
        if of_replica:
            self._registry.register(collector)
        else:
            self._collectors.append(collector)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, those of this process with the name of the replica."""
        for metric in self._registry.collect():
            if self._replica is not None:
                metric.samples = [
                    sample._replace(labels={**sample.labels, "replica": self._replica})
                    for sample in metric.samples
                ]
            yield metric
        for each in self._collectors:
            yield from each.collect()


@dataclass(frozen=True, slots=True)
class _CountedEncoders:
    """Encoders whose answers are counted once for each batch."""

    encoders: EncoderClient
    name: str
    texts: Counter
    tokens: Counter
    faults: Counter

    async def infer(self, items: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        """Implement `EncoderClient.infer`, and count its results."""
        try:
            results = await self.encoders.infer(items, bulk=bulk)
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
        self.texts.inc(texts)
        self.tokens.inc(tokens)
        return results

    def _fault(self, error: Exception, texts: int) -> None:
        self.faults.labels(self.name, type(error).__name__).inc(texts)
