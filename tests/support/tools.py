"""Debian's tools that some tests drive: skipped by name where one is missing, failed where CI promised it."""

import os
import shutil

import pytest


def required_tool(name: str) -> str:
    """The path of the tool; without it the test is skipped, or failed under `CI=true`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        message = f"needs {name}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found
