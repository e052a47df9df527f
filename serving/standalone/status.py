"""The status of a home's platform: the supervisor's word, figures of its metrics, the disk and the last backup.

Reads only what is cheap to read. Starts and changes nothing.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from serving.core.home import Home
from serving.settings import Settings
from serving.standalone import launcher

# What a platform that runs tells; None where it can't be asked.
_FIGURES: Final = ("champions", "texts", "replicas", "queue", "evaluations", "experiments")


def describe(settings: Settings) -> dict[str, Any]:
    """Return the state of this home's platform, and what it holds and does; None: unknown.

    `texts` counts those with a vector, `replicas` those of encoders by state, `queue` is the weight that waits at the
    ingress replica that answered. `note` says why the figures are unknown.
    """
    home = settings.home.absolute()
    state = launcher.status(settings)
    figures, note = _ask(settings) if state["ready"] else ({}, None)
    return {
        **state,
        **{name: figures.get(name) for name in _FIGURES},
        "disk": _disk(home),
        "last_backup": _read_backup(home),
        "note": note,
    }


def note_backup(home: Path, summary: dict[str, Any]) -> None:
    """Keep what `status` says of the last backup; a home that isn't there isn't made."""
    record = {"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", **summary}
    # A backup has succeeded even if its note can't be written.
    with suppress(OSError):
        Home(home).last_backup.write_text(json.dumps(record))


def _ask(settings: Settings) -> tuple[dict[str, Any], str | None]:
    """Return the figures in the metrics, or none and the reason."""
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    admin_key = Home(settings.home).admin_key
    # The home's key is sent to its own platform alone.
    if not key and settings.url is None and admin_key.exists():
        key = admin_key.read_text(encoding="ascii").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{settings.base_url}/metrics", headers=headers, timeout=5)
    except httpx.HTTPError:
        return {}, "the metrics don't come: try again"
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return {}, "figures are for engineers: set VALENCE_API_KEY to the key of one"
    if not answer.is_success:
        return {}, f"the metrics are {answer.status_code} {answer.reason_phrase}: try again"
    families = text_string_to_metric_families(answer.text)
    return _figures(sample for family in families for sample in family.samples), None


def _figures(samples: Iterable[Sample]) -> dict[str, Any]:
    by_name: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_name[sample.name].append(sample)
    # The vectors of a retired segment are in the copy that replaced it, too.
    rows = [each for each in by_name["valence_index_rows"] if each.labels["state"] != "retired"]
    of_space = _sum(rows, "space")
    backlog = [each for each in by_name["valence_backlog"] if each.labels["kind"] == "evaluation"]
    return {
        "champions": {
            each.labels["model"]: each.labels["version"] for each in by_name["valence_model_champion"]
        },
        # While a space is built, each text has a vector in two.
        "texts": max(of_space.values(), default=0),
        "replicas": _sum(by_name["valence_encoder_replicas"], "state"),
        "queue": sum(int(each.value) for each in by_name["valence_queue_weight"]),
        "evaluations": _sum(backlog, "state"),
        "experiments": list(_experiments(by_name["valence_experiment_share"])),
    }


def _experiments(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    for each in samples:
        yield {
            "model": each.labels["model"],
            "challenger": each.labels["version"],
            "share": each.value,
            "shadow": each.labels["kind"] == "shadow",
        }


def _sum(samples: Iterable[Sample], label: str) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for each in samples:
        sums[each.labels[label]] += int(each.value)
    return dict(sums)


def _disk(home: Path) -> dict[str, int] | None:
    try:
        usage = shutil.disk_usage(home)
    except OSError:
        return None
    return {"free_bytes": usage.free, "total_bytes": usage.total}


def _read_backup(home: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(Home(home).last_backup.read_text())
    except (OSError, ValueError):
        return None
    return record
