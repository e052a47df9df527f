"""Child processes of our own modules."""

from pathlib import Path

import pytest

from serving.core.subprocesses import run_module

pytestmark = pytest.mark.anyio


async def test_a_module_of_the_working_directory_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "serving.py").write_text("raise SystemExit('somebody else ran')")
    monkeypatch.chdir(tmp_path)
    assert await run_module("serving.core.moments") is None
