"""What `valence status` tells of a platform that runs, of one whose figures it may not see, and of none."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from db.analytics.statistics import SegmentCounts, Statistics
from serving.cli.platform import _status_lines
from serving.core.catalog import Catalog
from serving.monitoring.collectors import PlatformCollector, StoredStatistics
from serving.predictions.routing import Split, Traffic
from serving.settings import Settings
from serving.standalone import status

USAGE = SimpleNamespace(total=64 * 2**30, free=3 * 2**29)
SPLIT = Split(experiment_id=uuid4(), stage=1, champion="3", challenger="4", share=0.05, salt="s", shadow=True)


class Queue:
    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily("valence_queue_weight", "Weight.", labels=("door",))
        gauge.add_metric(("bulk",), 12)
        yield gauge


def expose() -> str:
    """Return the metrics of a platform that measures a version and tries another."""
    stored = StoredStatistics()
    counts = [
        SegmentCounts(space=space, state=state, segments=1, rows=rows)
        for space, state, rows in (
            ("old", "open", 200),
            ("old", "indexed", 1_000),
            ("old", "retired", 900),
            ("new", "open", 700),
        )
    ]
    stored.update(Statistics(segments=counts, evaluations={"running": 1, "waiting": 2}))
    catalog = Catalog(champions={"sentiment": "3"}, replicas={"e1": {"running": 2}, "e2": {"running": 1}})
    traffic = Traffic(splits={"sentiment": SPLIT})
    registry = CollectorRegistry()
    registry.register(
        PlatformCollector(catalog=lambda: catalog, traffic=lambda: traffic, stored=stored, version="0.1.0")
    )
    registry.register(Queue())
    return generate_latest(registry).decode()


class Running:
    """A platform that is up; keeps the credentials that its metrics were asked with."""

    def __init__(self) -> None:
        self.answer = httpx.Response(200, text=expose())
        self.asked: list[Any] = []
        self.ready = True

    def get(self, _url: str, *, headers: dict[str, str], timeout: float) -> httpx.Response:
        assert timeout > 0
        self.asked.append(headers.get("Authorization"))
        return self.answer


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    platform = Running()
    monkeypatch.setattr(status.httpx, "get", platform.get)
    monkeypatch.setattr(status.shutil, "disk_usage", lambda _home: USAGE)
    monkeypatch.setattr(status.launcher, "status", lambda _settings: {"up": True, "ready": platform.ready})
    return platform


def test_a_running_platform_tells_what_it_holds_and_does(running: Running, tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("vk_admin\n")
    status.note_backup(tmp_path, {"backup": "/b/one.backup", "files": 3, "bytes": 5 * 2**20})
    answer = status.describe(Settings(home=tmp_path))
    assert running.asked == ["Bearer vk_admin"]
    assert answer["champions"] == {"sentiment": "3"}
    assert (answer["texts"], answer["replicas"], answer["queue"]) == (1_200, {"running": 3}, 12)
    assert answer["evaluations"] == {"running": 1, "waiting": 2}
    assert answer["experiments"] == [{"model": "sentiment", "challenger": "4", "share": 0.05, "shadow": True}]
    assert answer["disk"] == {"free_bytes": 3 * 2**29, "total_bytes": 64 * 2**30}
    assert answer["note"] is None
    lines = _status_lines(answer)
    assert (lines["texts"], lines["disk"]) == ("1,200", "1.5 GiB free of 64.0 GiB")
    assert lines["experiments"] == ["version 4 on 5.0% in the shadow of sentiment"]
    assert lines["last_backup"].endswith("Z  /b/one.backup  5 MiB")
    assert "note" not in lines


def test_a_platform_that_keeps_its_figures_says_what_to_do(running: Running, tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("vk_admin")
    running.answer = httpx.Response(403)
    answer = status.describe(Settings(home=tmp_path, url="http://127.0.0.1:9"))
    assert running.asked == [None]
    assert (answer["champions"], answer["texts"]) == (None, None)
    assert answer["note"] == "figures are for engineers: set VALENCE_API_KEY to the key of one"
    lines = _status_lines(answer)
    assert "texts" not in lines
    assert "valence db backup" in lines["last_backup"]


def test_a_platform_that_is_not_ready_is_asked_for_nothing(running: Running, tmp_path: Path) -> None:
    running.ready = False
    answer = status.describe(Settings(home=tmp_path))
    assert (running.asked, answer["champions"], answer["note"]) == ([], None, None)
