"""Monitoring of a live platform: dashboards with a real Prometheus, logs and traces of all processes."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from tests.support.clock import eventually
from tests.support.collector import Collector
from tests.support.live import LivePlatform
from tests.support.prometheus import Prometheus, Query, dashboard_queries, run_prometheus
from tests.support.rules import alert_rules

# Metrics that a healthy platform doesn't have in its first minutes.
EMPTY = {
    "valence_drift_psi": "needs answers that are older than an hour",
    'kind="store-unavailable"': "the database answers",
    "valence_text_faults_total": "every text is answered",
}


@pytest.fixture(scope="module")
def prometheus(watched: LivePlatform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump(alert_rules()))
    with run_prometheus(watched.port, folder, rules) as running:
        yield running


def use(client: httpx.Client) -> None:
    """Use a little of each kind of request."""
    for number in range(8):
        response = client.post("/v1/predict", json={"text": f"a good number: {number} {uuid4()}"})
        assert response.status_code == 201, response.text
        judged = {"prediction_id": response.json()["id"], "is_correct": number % 4 > 0}
        assert client.post("/v1/feedback", json=judged).status_code == 201
    texts = [f"a bad number: {number} {uuid4()}" for number in range(40)]
    assert client.post("/v1/predict/batch", json={"texts": texts}).status_code == 201
    assert client.post("/v1/similar", json={"text": "a number", "k": 3}).status_code == 200
    assert client.post("/v1/predict", json={"text": ""}).status_code == 422


def test_every_query_of_every_dashboard_answers_on_a_running_platform(
    watched: LivePlatform, prometheus: Prometheus
) -> None:
    with watched.client() as client:
        started = client.post("/v1/experiments", json={"model": "sentiment", "challenger": "1", "share": 0.5})
        assert started.status_code == 201, started.text

        def scraped_twice() -> bool:
            """Scrape both ingress replicas by the one port; a label tells them apart."""
            use(client)
            outcome = prometheus.ask("count_over_time(valence_http_requests_in_flight[5m])")
            return len(outcome) == 2 and all(float(each["value"][1]) >= 2 for each in outcome)

        eventually(scraped_twice, within=90, what="Prometheus has met both ingress replicas twice")

        def challenged() -> bool:
            use(client)
            return len(prometheus.ask('rate(valence_predictions_total{arm="challenger"}[1m]) > 0')) > 0

        eventually(challenged, within=60, what="the challenger has answered")
        result = dashboard_queries()
        silent: list[Query] = []

        def all_answer() -> bool:
            use(client)
            silent[:] = [each for each in result if not prometheus.ask(each.text)]
            return all(any(part in each.text for part in EMPTY) for each in silent)

        try:
            eventually(all_answer, within=60, what="every query has an answer")
        finally:
            results = [
                f"{len(result)} queries of 3 dashboards, {len(silent)} of them silent:",
                *map(str, silent),
            ]
            print("", *results, sep="\n  ")  # noqa: T201 - `make eyes` says what was checked
        client.post(f"/v1/experiments/{started.json()['id']}/stop")


def test_every_metric_of_a_dashboard_or_an_alert_exists(
    watched: LivePlatform, prometheus: Prometheus
) -> None:
    with watched.client() as client:
        use(client)
        page = client.get("/metrics").text
    results = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    for suffix in ("_bucket", "_sum", "_count"):
        results |= {name + suffix for name in list(results)}
    words = {
        word
        for query in [each.text for each in dashboard_queries()] + [yaml.safe_dump(alert_rules())]
        for word in "".join(c if c.isalnum() or c == "_" else " " for c in query).split()
        if word.startswith("valence_")
    }
    assert words - results == set()


def test_alert_rules_are_healthy_and_silent_on_a_healthy_platform(prometheus: Prometheus) -> None:
    def evaluated() -> bool:
        return all(rule["health"] != "unknown" for rule in prometheus.rules())

    eventually(evaluated, within=90, what="every rule was evaluated")
    rules = prometheus.rules()
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
    print(f"\n{len(rules)} alert rules are evaluated, none fires")  # noqa: T201


def test_every_process_logs_json_at_once_with_the_request_id(watched: LivePlatform) -> None:
    with watched.client() as client:
        mine = f"eyes-{uuid4()}"
        client.post("/v1/predict", json={"text": "to be found"}, headers={"X-Request-Id": mine})

        def logged() -> bool:
            return any(line.get("request_id") == mine for line in watched.log_lines())

        eventually(logged, within=3, what="the request's line is written")
        response = client.post("/v1/models/sentiment/versions/1/evaluate")
        assert response.status_code == 202, response.text
        eventually(
            lambda: (
                {"supervisor", "stage", "ingress", "encoder", "control", "evaluation"}
                <= {line["process"] for line in watched.log_lines() if "process" in line}
            ),
            within=300,
            what="every kind of process has logged",
        )
    assert "to be found" not in (watched.home / "logs" / "platform.log").read_text()


def test_a_request_is_traced_through_ingress_replica_and_database(
    watched: LivePlatform, receiver: Collector
) -> None:
    trace = uuid4().hex
    with watched.client() as client:
        headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        assert (
            client.post("/v1/predict", json={"text": f"traced {trace}"}, headers=headers).status_code == 201
        )

    def found(process: str, name: str, wanted: Any) -> Any:
        return next((span for span in receiver.spans(process, name) if wanted(span)), None)

    def whole() -> bool:
        request = found("ingress", "POST /v1/predict", lambda span: span.trace_id.hex() == trace)
        if request is None:
            return False

        def linked(span: Any) -> bool:
            return any(link.span_id == request.span_id for link in span.links)

        infer, store = found("ingress", "infer", linked), found("ingress", "store", linked)
        if infer is None or store is None:
            return False
        encode = found("encoder", "encode", lambda span: span.parent_span_id == infer.span_id)
        write = found("ingress", "postgresql write", lambda span: span.parent_span_id == store.span_id)
        return {link.span_id for link in request.links} == {infer.span_id, store.span_id} and None not in (
            encode,
            write,
        )

    eventually(whole, within=15, what="spans of ingress, replica and database belong together")
