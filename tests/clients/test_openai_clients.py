"""OpenAI's clients and LangChain embed as they come, and see what they ask for."""

import json
from pathlib import Path
from typing import Any

from tests.clients.commands import HERE, run
from tests.clients.conftest import Served
from tests.support.tools import required_tool

MODELS = ["sentiment", "test-space"]


def call(interpreter: Path | str, script: Path, served: Served, folder: Path) -> Any:
    return json.loads(run(interpreter, script, served.url, served.key, folder=folder))


def test_openai_s_python_client_embeds_lists_and_raises(
    environment: Path, served: Served, tmp_path: Path
) -> None:
    answers = call(environment / "bin" / "python", HERE / "call_openai.py", served, tmp_path)
    errors = answers.pop("errors")
    assert answers == {
        "same": True,
        "usage": 4,
        "most": 2048,
        "large": 1500,
        "truncated": [False, True],
        "async": 384,
        "models": MODELS,
        "retrieved": [1767225600] * 2,
    }
    assert {name: error.partition(":")[0] for name, error in errors.items()} == {
        "empty": "BadRequestError",
        "tokens": "BadRequestError",
        "many": "BadRequestError",
        "dimensions": "BadRequestError",
        "model": "NotFoundError",
        "retrieve": "NotFoundError",
        "key": "AuthenticationError",
        "chat": "NotFoundError",
    }
    assert "check_embedding_ctx_length=False" in errors["tokens"]
    assert "use 'test-space'" in errors["model"]


def test_langchain_embeds_a_thousand_documents_at_once(
    environment: Path, served: Served, tmp_path: Path
) -> None:
    answers = call(environment / "bin" / "python", HERE / "call_langchain.py", served, tmp_path)
    assert answers == {"documents": 1500, "length": 2720, "same": True}


def test_openai_s_javascript_client_embeds_lists_and_raises(
    node_modules: Path, served: Served, tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(node_modules)
    script = tmp_path / "call_openai.mjs"
    script.write_text((HERE / script.name).read_text())
    answers = call(required_tool("node"), script, served, tmp_path)
    errors = answers.pop("errors")
    assert answers == {
        "same": True,
        "dimensions": 384,
        "most": 2048,
        "models": MODELS,
        "retrieved": "test-space",
    }
    assert {name: error.partition(":")[0] for name, error in errors.items()} == {
        "empty": "BadRequestError",
        "tokens": "BadRequestError",
        "model": "NotFoundError",
        "retrieve": "NotFoundError",
    }
    assert "token ids aren't understood" in errors["tokens"]
