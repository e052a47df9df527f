"""Runs a client of another project as a command of its own."""

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """Return what a command prints; fail with it if the command fails."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
