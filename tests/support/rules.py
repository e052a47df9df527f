"""The alert rules of the manifests, as Prometheus reads them."""

from pathlib import Path
from typing import Any

import yaml

_MANIFEST = Path(__file__).parents[2] / "k8s" / "base" / "alerts.yaml"


def alert_rules() -> dict[str, Any]:
    """What the PrometheusRule has for its specification: a rule file's content."""
    found: dict[str, Any] = yaml.safe_load(_MANIFEST.read_text())["spec"]
    return found
