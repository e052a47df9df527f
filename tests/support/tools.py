"""Debian's tools for tests: where one is missing, its tests are skipped, or fail in CI."""

import os
import shutil

import pytest


def required_tool(name: str) -> str:
    """Return the tool's path; without it skip the test, or fail under `CI=true`."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if path is None:
        message = f"needs {name}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path
