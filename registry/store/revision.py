"""The revision of the running code: a commit, or the version of the installed package."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_revision() -> str:
    """Return the commit, with `-dirty` if files differ from it; outside a repository `valence X.Y.Z`."""
    here = Path(__file__).resolve()
    # The package may be installed inside another project's repository, whose commits don't describe it.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None:
        described = _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        if described:
            return described
    try:
        return f"valence {version('valence')}"
    except PackageNotFoundError:
        return "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
