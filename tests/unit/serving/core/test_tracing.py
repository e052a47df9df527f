"""Traces: a caller's trace continues, a batch links to its requests, and disabled tracing costs nothing."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from db.predictions.submissions import Outcome, Stored, Submission
from serving.core.caller import Role
from serving.core.tracing import Spans, build_spans
from serving.errors import NotReady
from serving.inference.dispatcher import InferenceItem
from serving.inference.messages import InferenceReply, InferenceRequest
from serving.inference.replica_client import ReplicaClient
from tests.support.app import fake_platform
from tests.support.collector import collector

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Recorded:
    def __init__(self, **options: float) -> None:
        self.exporter = InMemorySpanExporter()
        self.spans = Spans(self.exporter, process="test", **options)

    def named(self, name: str) -> list[ReadableSpan]:
        self.spans._processor.force_flush()
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    result = Recorded()
    yield result
    result.spans.close()


class Calls:
    """A replica that keeps its calls and gives no results."""

    def __init__(self) -> None:
        self.questions: list[InferenceRequest] = []

    async def infer(self, question: InferenceRequest) -> InferenceReply:
        self.questions.append(question)
        raise NotReady("gone")


def test_without_an_endpoint_nothing_is_made_and_nothing_imported() -> None:
    assert build_spans(None, process="test") is None
    code = (
        "import sys, serving.core.tracing as t; "
        "t.build_spans(None, process='x'); print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.anyio
async def test_a_callers_trace_goes_on_through_the_request(recorded: Recorded) -> None:
    async with fake_platform(spans=recorded.spans) as platform, platform.client() as client:
        answer = await client.post(
            "/v1/predict", json={"text": "good"}, headers={"traceparent": PARENT, "X-Request-Id": "mine"}
        )
        await client.post("/v1/predict", json={"text": "good"}, headers={"traceparent": "nonsense"})
    assert answer.status_code == 201
    first, second = recorded.named("POST /v1/predict")
    assert first.context is not None
    assert first.parent is not None
    assert (f"{first.context.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, "00f067aa0ba902b7")
    assert second.parent is None
    attributes = first.attributes or {}
    assert (attributes["http.route"], attributes["http.response.status_code"]) == ("/v1/predict", 201)
    assert attributes["valence.request_id"] == "mine"
    assert "good" not in str(attributes)


@pytest.mark.anyio
async def test_a_batch_and_its_requests_link_to_each_other_and_the_replica_gets_the_batch_id(
    recorded: Recorded,
) -> None:
    calls = Calls()
    encoders = ReplicaClient(calls, spans=recorded.spans)
    with recorded.spans.request("a", "POST", None), recorded.spans.request("b", "POST", PARENT):
        asks = [InferenceItem(text=f"{n}", record=None, request_id="ab"[n % 2]) for n in range(4)]
        await encoders.infer(asks, bulk=False)
    (batch,) = recorded.named("infer")
    requests = {span.context.span_id: span for span in recorded.named("POST") if span.context}
    assert batch.context is not None
    assert batch.parent is None
    assert {link.context.span_id for link in batch.links} == requests.keys()
    for request in requests.values():
        assert [link.context.span_id for link in request.links] == [batch.context.span_id]
    result = calls.questions[0].traceparent
    assert result is not None
    assert result.split("-")[1:3] == [f"{batch.context.trace_id:032x}", f"{batch.context.span_id:016x}"]
    with recorded.spans.within("encode", result):
        pass
    (encode,) = recorded.named("encode")
    assert encode.parent is not None
    assert encode.parent.span_id == batch.context.span_id


@pytest.mark.anyio
async def test_what_is_not_sampled_leaves_no_span_of_a_batch_either() -> None:
    result, calls = Recorded(share=0), Calls()
    encoders = ReplicaClient(calls, spans=result.spans)
    with result.spans.request("a", "POST", None):
        await encoders.infer([InferenceItem(text="x", record=None, request_id="a")], bulk=False)
    assert calls.questions[0].traceparent is None
    assert result.named("infer") == []
    result.spans.close()


@pytest.mark.anyio
async def test_a_transaction_is_linked_with_its_requests_and_the_database_is_under_it(
    recorded: Recorded,
) -> None:
    class Writes:
        async def commit(self, submissions: Sequence[Submission]) -> list[Outcome]:
            with recorded.spans.database("write"):
                await asyncio.sleep(0)
            return [Stored()]

    submission = Submission(texts=[], predictions=[], idempotency=None)
    with recorded.spans.database("read"):
        pass
    with recorded.spans.request("a", "POST", None):
        await recorded.spans.writer(Writes()).commit([submission])
        with recorded.spans.database("read"):
            pass
    assert len(recorded.named("postgresql read")) == 1, "what no request asked for is not traced"


def test_spans_reach_a_collector() -> None:
    with collector() as received:
        spans = build_spans(received.url + "/", process="ingress", replica="r1")
        assert spans is not None
        with spans.request("a", "GET", PARENT):
            pass
        spans.close()
        (span,) = received.spans("ingress", "GET")
        assert span.trace_id.hex() == TRACE


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("role", "share", "traced"), [(None, 0.0, False), (None, 1.0, True), (Role.CLIENT, 0.0, True)]
)
async def test_a_stranger_s_traceparent_counts_for_the_share(
    role: Role | None, share: float, traced: bool
) -> None:
    recorded = Recorded(share=share)
    async with fake_platform(spans=recorded.spans) as platform:
        headers = {"traceparent": PARENT}
        async with platform.client(role, key=None if role else "vk_wrong") as client:
            await client.get("/v2", headers=headers)
            await client.get("/health/live", headers=headers)
    found = [span.name for span in (*recorded.named("GET /v2"), *recorded.named("GET /health/live"))]
    assert found == ([] if not traced else ["GET /v2"] if role else ["GET /v2", "GET /health/live"])
    assert recorded.spans._untrusted == set()
    recorded.spans.close()


def test_nothing_below_a_stranger_s_span_is_exported() -> None:
    recorded = Recorded(share=0.0)
    for trusted in (False, True):
        with recorded.spans.request("r", "GET", PARENT):
            if trusted:
                recorded.spans.trust()
            with recorded.spans.database("find"):
                pass
    assert (len(recorded.named("postgresql find")), len(recorded.named("GET"))) == (1, 1)
    recorded.spans.close()
