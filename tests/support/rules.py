"""The alert rules of the manifests, in Prometheus' format."""

from pathlib import Path
from typing import Any

import yaml

_MANIFEST = Path(__file__).parents[2] / "k8s" / "base" / "alerts.yaml"


def alert_rules() -> dict[str, Any]:
    """Return the PrometheusRule's specification, which is the content of a rule file."""
    specification: dict[str, Any] = yaml.safe_load(_MANIFEST.read_text())["spec"]
    return specification
