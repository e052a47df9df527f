"""Metrics: bounded labels, replicas told apart, the platform's figures equal everywhere."""

from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from db.analytics.statistics import (
    AnswerDistribution,
    Distributions,
    FeedbackCounts,
    SegmentCounts,
    Statistics,
)
from db.connection.engine import PoolState
from serving.core.caller import Role
from serving.core.catalog import Catalog
from serving.errors import ModelNotReady, NotReady
from serving.inference.dispatcher import Inference, InferenceItem
from serving.monitoring.collectors import PlatformCollector, ReplicaCollector, StoredStatistics, measure_drift
from serving.monitoring.metrics import Metrics
from serving.predictions.routing import Split, Traffic
from tests.support.app import catalog, fake_platform

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(metrics: Metrics) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value_of(samples: Samples, metric: str, **labels: str) -> float:
    return samples[metric, tuple(sorted(labels.items()))]


def new_collector(
    stored: StoredStatistics, known: Catalog | None = None, traffic: Traffic | None = None
) -> PlatformCollector:
    return PlatformCollector(
        catalog=lambda: known or catalog(),
        traffic=lambda: traffic or Traffic(),
        stored=stored,
        version="9",
    )


class Some:
    """Encoders that answer one text, fail one, and can disappear."""

    def __init__(self) -> None:
        self.gone = False

    async def infer(self, asks: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        if self.gone:
            raise NotReady("gone")
        read = Inference(
            scores=(0, 0, 1),
            embedding=b"",
            tokens=7,
            truncated=False,
            unknown=False,
            language="en",
            foreign=False,
        )
        return [read, ModelNotReady("no score"), *[read] * (len(asks) - 2)]


def test_a_replica_has_a_label_in_its_own_metrics_and_none_in_the_platforms() -> None:
    metrics, stored = Metrics("r1"), StoredStatistics()
    pool = PoolState(name="writers", limit=2, open=2, idle=1, waiting=3)
    metrics.add_collector(ReplicaCollector(pools=lambda: [pool], stored=stored), of_replica=True)
    metrics.add_collector(new_collector(stored), of_replica=False)
    metrics.count_error("overloaded")
    samples = read(metrics)
    assert value_of(samples, "valence_errors_total", kind="overloaded", replica="r1") == 1
    assert value_of(samples, "valence_database_up", replica="r1") == 0
    assert value_of(samples, "valence_database_pool_waiting", pool="writers", replica="r1") == 3
    used = value_of(samples, "valence_database_pool_connections", pool="writers", replica="r1", state="used")
    assert (used, value_of(samples, "valence_database_pool_limit", pool="writers", replica="r1")) == (1, 2)
    assert value_of(samples, "valence_model_champion", model="sentiment", version="2") == 1
    assert value_of(samples, "valence_build_info", release="9") == 1


def test_replicas_experiments_and_states_follow_catalog_and_traffic() -> None:
    metrics = Metrics()
    split = Split(
        experiment_id=None,
        stage=1,
        champion="2",
        challenger="1",
        share=0.25,
        salt="s",
        shadow=True,  # type: ignore[arg-type]
    )
    known = Catalog(replicas={"e": {"running": 2, "starting": 1}})
    metrics.add_collector(
        new_collector(StoredStatistics(), known, Traffic(splits={"sentiment": split})), of_replica=False
    )
    samples = read(metrics)
    assert value_of(samples, "valence_encoder_replicas", encoder="e", state="running") == 2
    assert (
        value_of(samples, "valence_experiment_share", model="sentiment", version="1", kind="shadow") == 0.25
    )


def test_stored_counts_are_the_last_ones_and_absent_while_the_database_is_away() -> None:
    metrics, stored = Metrics(), StoredStatistics()
    metrics.add_collector(new_collector(stored), of_replica=False)
    metrics.add_collector(ReplicaCollector(pools=list, stored=stored), of_replica=True)
    stored.update(
        Statistics(
            segments=[SegmentCounts(space="s", state="open", segments=1, rows=40)],
            evaluations={"running": 1, "waiting": 2},
            oldest_waiting=12.0,
            judged={("sentiment", "2"): FeedbackCounts(judged=10, right=9)},
        )
    )
    stored.distributions = Distributions(
        recent={
            ("sentiment", "2"): AnswerDistribution(
                labels={"positive": 300}, confidences=[0] * 9 + [300], confidence=0.95
            )
        },
        reference={
            ("sentiment", "2"): AnswerDistribution(
                labels={"positive": 150, "negative": 150}, confidences=[0] * 9 + [300], confidence=0.9
            )
        },
    )
    samples = read(metrics)
    assert value_of(samples, "valence_index_rows", space="s", state="open") == 40
    assert value_of(samples, "valence_backlog", kind="evaluation", state="waiting") == 2
    assert value_of(samples, "valence_backlog_oldest_seconds", kind="evaluation") == 12
    assert value_of(samples, "valence_feedback_accuracy", model="sentiment", version="2") == pytest.approx(
        0.9
    )
    assert (
        value_of(samples, "valence_recent_label_share", model="sentiment", version="2", sentiment="positive")
        == 1
    )
    assert value_of(samples, "valence_drift_psi", model="sentiment", version="2", of="label") > 0.25
    assert value_of(samples, "valence_drift_psi", model="sentiment", version="2", of="confidence") == 0
    assert value_of(samples, "valence_database_up") == 1
    stored.clear()
    samples = read(metrics)
    assert value_of(samples, "valence_database_up") == 0
    assert not [
        name for name, _ in samples if name.startswith(("valence_index", "valence_backlog", "valence_drift"))
    ]


def test_drift_is_absent_before_enough_predictions() -> None:
    few = AnswerDistribution(labels={"positive": 20}, confidences=[0] * 9 + [20], confidence=0.9)
    assert measure_drift(AnswerDistribution(), few) == {}


@pytest.mark.anyio
async def test_tokens_and_faults_are_counted_by_encoder() -> None:
    metrics, some = Metrics(), Some()
    encoders = metrics.count_texts("e", some)
    asks = [InferenceItem(text="secret words", record=None)] * 3
    assert len(await encoders.infer(asks, bulk=False)) == 3
    some.gone = True
    with pytest.raises(NotReady):
        await encoders.infer(asks, bulk=False)
    samples = read(metrics)
    assert value_of(samples, "valence_tokens_total", encoder="e") == 14
    assert value_of(samples, "valence_texts_total", encoder="e") == 2
    assert value_of(samples, "valence_text_faults_total", encoder="e", kind="ModelNotReady") == 1
    assert value_of(samples, "valence_text_faults_total", encoder="e", kind="NotReady") == 3
    assert "secret" not in metrics.render().decode()


@pytest.mark.anyio
async def test_answered_errors_are_counted_by_kind() -> None:
    async with fake_platform() as platform, platform.client(Role.ENGINEER) as client:
        await client.post("/v1/predict", json={"text": ""})
        await client.get("/no/such/path")
        await client.post("/v1/predict", json={"text": "good"})
        samples = read(platform.services.metrics)
    assert value_of(samples, "valence_errors_total", kind="invalid") == 1
    assert value_of(samples, "valence_errors_total", kind="not-found") == 1
    assert value_of(samples, "valence_tokens_total", encoder="e" * 16) > 0


@pytest.mark.anyio
async def test_labels_stay_bounded_for_any_request() -> None:
    async with fake_platform() as platform, platform.client(Role.ENGINEER) as client:

        async def ask(number: int) -> int:
            headers = {"X-Request-Id": f"id-{number}"}
            body = {"text": f"good {number}", "unit": f"unit-{number}"}
            await client.post("/v1/predict", json=body, headers=headers)
            await client.get(f"/path/{number}")
            await client.get(f"/v1/models/model-{number}")
            await client.request("BREW", "/v1/predict")
            return len(read(platform.services.metrics))

        few = await ask(0)
        for number in range(1, 20):
            assert await ask(number) == few
        page = platform.services.metrics.render().decode()
    for secret in ("id-1", "unit-1", "/path/1", "model-1", "BREW", "good"):
        assert secret not in page
