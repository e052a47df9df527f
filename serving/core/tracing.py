"""Trace spans of one process for an OTLP collector: requests at the ingress, batches to the replicas, the database.

Without an endpoint there is no `Spans`, and OpenTelemetry isn't imported. A batch serves many requests, so its span
and the spans of its requests are linked both ways.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from db.predictions.submissions import Outcome, Submission

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_SCOPE = "valence"
_DELAY_MILLISECONDS = 1000
_LINKS = 128


class SubmissionWriter(Protocol):
    """The writer of predictions, traced or not."""

    async def commit(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store the submissions of many requests in one transaction."""


class Spans:
    """Creates spans; a sampled request is traced with everything that belongs to it.

    Args:
        exporter: receives the spans.
        process, replica: the kind of this process, and its replica.
        share: share of the requests that are sampled without a traceparent, or without a caller who may ask for it.
    """

    def __init__(
        self, exporter: "SpanExporter", *, process: str, replica: str | None = None, share: float = 1.0
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create(
            {"service.name": "valence", "valence.process": process, "service.instance.id": replica or ""}
        )
        untrusted = self._untrusted = set[int]()

        class TrustedProcessor(BatchSpanProcessor):
            """Exports no span that only a stranger's traceparent asks for."""

            def on_end(self, span: ReadableSpan) -> None:
                if span.context is None or span.context.span_id not in untrusted:
                    super().on_end(span)
                else:
                    untrusted.discard(span.context.span_id)

        self._processor = TrustedProcessor(exporter, schedule_delay_millis=_DELAY_MILLISECONDS)
        self._share = TraceIdRatioBased(share)
        # A batch is traced if one of its requests is; it isn't sampled again.
        requests = TracerProvider(ParentBased(self._share), resource)
        batches = TracerProvider(ParentBased(ALWAYS_ON), resource)
        for provider in (requests, batches):
            provider.add_span_processor(self._processor)
        self._requests = requests.get_tracer(_SCOPE)
        self._batches = batches.get_tracer(_SCOPE)
        self._context = TraceContextTextMapPropagator()
        self._open: dict[str, Span] = {}

    @contextmanager
    def request(self, request_id: str, method: str, traceparent: str | None) -> Iterator["Span"]:
        """Open the span of a request, in the caller's trace if the request names one.

        Beyond the share, the span is exported only if `trust` is called in it.
        """
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        parent = self._context.extract({"traceparent": traceparent} if traceparent else {}, Context())
        with self._requests.start_as_current_span(
            method, parent, SpanKind.SERVER, {"http.request.method": method, "valence.request_id": request_id}
        ) as span:
            if span.is_recording():
                self._open[request_id] = span
                if not self._is_in_share(span):
                    self._untrusted.add(span.get_span_context().span_id)
            try:
                yield span
            finally:
                if self._open.get(request_id) is span:
                    del self._open[request_id]

    def trust(self) -> None:
        """Export the present request's span as its traceparent asks: its caller has credentials."""
        from opentelemetry.trace import get_current_span

        self._untrusted.discard(get_current_span().get_span_context().span_id)

    def _is_in_share(self, span: "Span") -> bool:
        from opentelemetry.sdk.trace.sampling import Decision

        sampled = self._share.should_sample(None, span.get_span_context().trace_id, "")
        return sampled.decision is Decision.RECORD_AND_SAMPLE

    @contextmanager
    def batch(self, name: str, request_ids: Iterable[str | None], **attributes: Any) -> Iterator[str | None]:
        """Open the span of a batch, linked with its requests; yield its traceparent, or None if none is traced."""
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, SpanKind

        wanted = dict.fromkeys(each for each in request_ids if each is not None)
        traced = [span for each in wanted if (span := self._open.get(each)) is not None]
        if not traced:
            yield None
            return
        links = [Link(span.get_span_context()) for span in traced[:_LINKS]]
        with self._batches.start_as_current_span(
            name, Context(), SpanKind.CLIENT, {"valence.requests": len(wanted), **attributes}, links
        ) as batch:
            for span in traced:
                span.add_link(batch.get_span_context())
            carrier: dict[str, str] = {}
            self._context.inject(carrier)
            yield carrier["traceparent"]

    @contextmanager
    def within(self, name: str, traceparent: str | None, **attributes: Any) -> Iterator[None]:
        """Open the span of work for a batch of another process, if that batch is traced."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        if traceparent is None:
            yield
            return
        parent = self._context.extract({"traceparent": traceparent}, Context())
        with self._batches.start_as_current_span(name, parent, SpanKind.SERVER, attributes):
            yield

    def database(self, name: str) -> AbstractContextManager[object]:
        """Return a span for an operation of the database, if there is a present span."""
        from opentelemetry.trace import SpanKind, get_current_span

        present = get_current_span()
        if not present.is_recording() or present.get_span_context().span_id in self._untrusted:
            return nullcontext()
        return self._batches.start_as_current_span(
            f"postgresql {name}",
            None,
            SpanKind.CLIENT,
            {"db.system.name": "postgresql", "db.operation.name": name},
        )

    def writer(self, writer: SubmissionWriter) -> SubmissionWriter:
        """Return the writer with a span around each transaction."""
        return _TracedWriter(writer, self)

    def close(self) -> None:
        """Send the remaining spans."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


class _TracedWriter:
    def __init__(self, writer: SubmissionWriter, spans: Spans) -> None:
        self._writer = writer
        self._spans = spans

    async def commit(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Commit in a span that is linked with its requests."""
        ids = (each.predictions[0].request_id for each in submissions if each.predictions)
        with self._spans.batch("store", ids, **{"valence.submissions": len(submissions)}):
            return await self._writer.commit(submissions)


def build_spans(
    endpoint: str | None, *, process: str, replica: str | None = None, share: float = 1.0
) -> Spans | None:
    """Return spans that go to an OTLP/HTTP collector at this base address; None without an address."""
    if endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    return Spans(exporter, process=process, replica=replica, share=share)


def record_route(span: "Span", method: str, route: str, status: int) -> None:
    """Record on a request's span what is known once it is answered."""
    from opentelemetry.trace import StatusCode

    span.update_name(f"{method} {route}")
    span.set_attributes({"http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.set_status(StatusCode.ERROR)
