"""Debian's Prometheus on loopback, over a test's platform, and the queries of the dashboards."""

import json
import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.clock import eventually
from tests.support.ports import find_free_port
from tests.support.tools import required_tool

DASHBOARDS = Path(__file__).parents[2] / "k8s" / "dashboards"
_WINDOW = "1m"
_CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: valence
    static_configs: [{{targets: ['127.0.0.1:{port}']}}]
"""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query of a panel, as Grafana sends it."""

    dashboard: str
    panel: str
    text: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}: {self.text}"


def dashboard_queries() -> list[Query]:
    """Return every query of every dashboard."""
    queries = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            queries += [
                Query(
                    dashboard=path.stem,
                    panel=panel["title"],
                    text=target["expr"].replace("$__rate_interval", _WINDOW),
                )
                for target in panel.get("targets", ())
            ]
    return queries


class Prometheus:
    """A client of a Prometheus server."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=10)

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def ask(self, query: str) -> list[Any]:
        """Return a query's results, without those that are not a number."""
        answer = self._client.get("/api/v1/query", params={"query": query})
        assert answer.status_code == httpx.codes.OK, f"{query}: {answer.text}"
        result = answer.json()["data"]["result"]
        return [each for each in result if not math.isnan(float(each["value"][1]))]

    def rules(self) -> list[dict[str, Any]]:
        """Return the alert rules as Prometheus evaluates them."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def close(self) -> None:
        self._client.close()


@contextmanager
def run_prometheus(port: int, folder: Path, rules: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes the platform on this port each second."""
    tool = required_tool("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(_CONFIG.format(port=port, rules=rules))
    listen_port = find_free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{listen_port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    prometheus = Prometheus(f"http://127.0.0.1:{listen_port}")
    try:
        eventually(prometheus.ready, within=30, what="Prometheus is ready")
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(20)
