"""Clients that generators write from /openapi.json as it comes: they compile, and every operation is called."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.clients.commands import HERE, run
from tests.clients.conftest import Served
from tests.support.tools import required_tool


def operation_ids(document: dict[str, Any]) -> set[str]:
    return {operation["operationId"] for item in document["paths"].values() for operation in item.values()}


def test_openapi_python_client_writes_a_client_that_calls_every_operation(
    environment: Path, served: Served, tmp_path: Path
) -> None:
    tools = environment / "bin"
    run(
        tools / "openapi-python-client", "generate", "--path", "openapi.json", "--output-path", "written",
        "--meta", "none", "--fail-on-warning",
        folder=tmp_path, PATH=f"{tools}:{os.environ['PATH']}",
    )  # fmt: skip
    printed = run(
        tools / "python", HERE / "call_generated.py", "openapi.json", served.url, served.key,
        folder=tmp_path, PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    statuses = json.loads(printed)
    assert set(statuses) == operation_ids(served.document)
    assert {
        name for name, status in statuses.items() if status not in {200, 201, 202, 204, 401, 404, 409}
    } == set()
    for name in ("predict", "predict_batch", "find_similar", "get_model", "model_infer"):
        assert statuses[name] < 300, (name, statuses[name])


@pytest.mark.slow
def test_openapi_typescript_writes_types_that_calls_compile_with(
    node_modules: Path, served: Served, tmp_path: Path
) -> None:
    node = required_tool("node")
    (tmp_path / "node_modules").symlink_to(node_modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "calls.ts").write_text((HERE / "calls.ts").read_text())
    run(
        node,
        "node_modules/openapi-typescript/bin/cli.js",
        "openapi.json",
        "-o",
        "schema.d.ts",
        folder=tmp_path,
    )
    run(
        node, "node_modules/typescript/bin/tsc", "--strict", "--target", "es2022", "--module", "nodenext",
        "--lib", "es2022,dom", "calls.ts",
        folder=tmp_path,
    )  # fmt: skip
    printed = json.loads(run(node, "calls.js", served.url, served.key, folder=tmp_path))
    assert printed == {
        "sentiment": "positive",
        "batch": 2,
        "page": 2,
        "found": printed["found"],
        "same": True,
        "judged": True,
        "state": "failed",
        "outputs": ["label", "score", "probabilities", "prediction_id"],
        "problem": "text: the text is empty or blank: send at least one visible character",
    }
    assert printed["found"] > 0
