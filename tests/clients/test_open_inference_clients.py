"""The reference clients of the Open Inference Protocol, version 2, predict as they come."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.commands import HERE, run
from tests.clients.conftest import Served, skip_without

LABELS = ["positive", "negative"]
OUTPUTS = [
    "label",
    "score",
    "probabilities",
    "prediction_id",
    "embedding",
    "truncated",
    "language",
    "supported",
]


def call(environment: Path, script: str, served: Served, folder: Path, *, address: str = "") -> Any:
    printed = run(
        environment / "bin" / "python", HERE / script, address or served.url, served.key, folder=folder
    )
    return json.loads(printed)


def test_tritonclient_predicts_in_every_form(environment: Path, served: Served, tmp_path: Path) -> None:
    address = served.url.removeprefix("http://")
    answers = call(environment, "call_tritonclient.py", served, tmp_path, address=address)
    assert {name: labels for name, labels in answers["labels"].items() if labels != LABELS} == {}
    assert answers["refused"].startswith("422 the body is invalid: body.outputs.0.name")
    assert answers["shapes"] == {"embedding": [2, 384], "label": [2], "score": [2]}
    assert answers["norms"] == pytest.approx([1, 1], abs=1e-3)
    assert [sum(row) for row in answers["probabilities"]] == pytest.approx([1, 1])
    assert (answers["response"], answers["version"]) == ({"id": "42", "model_version": "2"}, "1")
    assert answers["ready"] == [True] * 4
    assert answers["server"]["extensions"] == ["binary_tensor_data"]
    assert [each["name"] for each in answers["model"]["outputs"]] == OUTPUTS


def test_kserve_predicts_in_every_form(environment: Path, served: Served, tmp_path: Path) -> None:
    skip_without(environment, "kserve")
    answers = call(environment, "call_kserve.py", served, tmp_path)
    assert {name: labels for name, labels in answers["labels"].items() if labels != LABELS} == {}
    assert answers["norms"] == pytest.approx([1, 1], abs=1e-3)
    assert (answers["id"], answers["ready"]) == ("42", [True] * 3)


def test_mlserver_s_codecs_are_understood_both_ways(
    environment: Path, served: Served, tmp_path: Path
) -> None:
    skip_without(environment, "mlserver")
    answers = call(environment, "call_mlserver.py", served, tmp_path)
    assert {name: labels for name, labels in answers["labels"].items() if labels != LABELS} == {}
    assert [sum(row) for row in answers["probabilities"]] == pytest.approx([1, 1])
    assert answers["inputs"] == ["text"]
    assert served.platform.store is not None
    stored = {text.content for text in served.platform.store.texts.values()}
    assert stored == {"so good", "it broke at once"}
