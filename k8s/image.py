"""`python -m k8s.image`: the RUN steps of the Dockerfile's build stage in a fresh folder, then `valence --help`.

For machines without a container engine. Steps of the other stages change the root file system and are only listed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PREFIX = "PREFIX"
STAGE = "build"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """An instruction of a Dockerfile, its continued lines joined, in the stage that it belongs to."""

    stage: str
    name: str
    text: str


def steps(dockerfile: str) -> Iterator[Step]:
    """Yield the instructions in order; those before the first stage belong to the stage ``."""
    joined = re.sub(r"\\\n", "", re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE))
    stage = ""
    for line in filter(str.strip, joined.splitlines()):
        name, _, text = line.strip().partition(" ")
        if name == "FROM":
            stage = text.rpartition(" AS ")[2]
        yield Step(stage=stage, name=name, text=text.strip())


def context(root: Path) -> list[str]:
    """Return the names that .dockerignore lets into the build."""
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("!") for line in lines if line.startswith("!")]


def run(dockerfile: Path, prefix: Path, source: Path, environment: Mapping[str, str]) -> list[Step]:
    """Run the steps of the build stage with `source` as working directory; return the RUN steps left out.

    Raises:
        CalledProcessError: a step failed.
    """
    left_out = []
    names = dict(environment)
    for step in steps(dockerfile.read_text(encoding="utf-8")):
        if step.name == "RUN" and step.stage != STAGE:
            left_out.append(step)
        if step.stage != STAGE:
            continue
        match step.name:
            case "ARG":
                name, _, value = step.text.partition("=")
                names[name] = str(prefix) if name == PREFIX else value
            case "ENV":
                names |= dict(pair.split("=", 1) for pair in shlex.split(step.text))
            case "COPY":
                *given, _ = step.text.split()
                _copy(context(ROOT) if given == ["."] else given, source)
            case "RUN":
                print(f"RUN {step.text[:100]}", flush=True)
                subprocess.run(["/bin/sh", "-c", step.text], cwd=source, env=names, check=True)
            case _:
                pass
    return left_out


def _copy(names: list[str], target: Path) -> None:
    for name in names:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, target / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy2(ROOT / name, target / name)


def main() -> int:
    """Build in a temporary folder, then run `valence --help` from a directory without other imports."""
    with tempfile.TemporaryDirectory(prefix="valence-image-") as folder:
        prefix, source = Path(folder) / "prefix", Path(folder) / "src"
        source.mkdir()
        environment = {
            name: os.environ[name] for name in os.environ if not name.startswith(("PYTHON", "VALENCE_"))
        }
        left_out = run(ROOT / "Dockerfile", prefix, source, environment)
        shutil.rmtree(source)
        subprocess.run(
            [prefix / "bin" / "valence", "--help"], cwd=folder, check=True, env=environment | {"HOME": folder}
        )
        size = sum(path.lstat().st_size for path in prefix.rglob("*")) / 2**30
        bill = prefix / "share" / "sbom.cdx.json"
        print(f"built: {size:.1f} GiB, bill of materials of {bill.stat().st_size:,} bytes")
        for step in left_out:
            print(f"left out, because it changes the root file system: {step.stage}: RUN {step.text[:80]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
