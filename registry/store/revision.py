"""Which code runs: the commit of the repository it lies in, or the version of the installed package."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_revision() -> str:
    """A commit, with `-dirty` if files differ from it; `valence X.Y.Z` where the code isn't a repository's own."""
    here = Path(__file__).resolve()
    # Installed inside somebody else's repository, the code isn't what its commits are about.
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
        done = subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
