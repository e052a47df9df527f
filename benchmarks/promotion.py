"""Five changes of the champion within a minute under load: failures, latency, time to follow.

Any MLflow client could move the alias like this: across heads of one encoder, to another encoder that must start first,
to a lexicon, and back. A minute without changes is the comparison. Run by `python -m benchmarks.promotion`.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.load import Load, measured, start
from benchmarks.report import report
from benchmarks.servers import Platform, platform
from registry.encoders.sources import SPACE
from registry.store.model_registry import CHAMPION, MODEL, ModelRegistry
from tests.support.versions import registry_at, twin_encoder, twin_head

CLIENTS = 32
POLL_SECONDS = 0.05
LONGEST_SECONDS = 60


def answering(mine: Platform) -> str:
    """Return the version that answers now."""
    return str(mine.call("/v1/predict", {"text": f"who answers? {time.time_ns()}"})["model_version"])


def followed(mine: Platform, registry: ModelRegistry, version: str) -> float:
    """Move the alias; return the seconds until its version answers."""
    registry.set_alias(MODEL, CHAMPION, version)
    moved = time.monotonic()
    while answering(mine) != version:
        if time.monotonic() - moved > LONGEST_SECONDS:
            raise RuntimeError(f"version {version} never answered")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - moved


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with platform() as mine, tempfile.TemporaryDirectory() as scratch:
        folder, registry = Path(scratch), registry_at(mine.home)
        first = answering(mine)
        own = registry.version(MODEL, first)
        same = registry.register(twin_head(folder / "same", "on the same encoder"))
        digest = twin_encoder(registry, folder / "encoder", "a twin", "a" * 64, space=SPACE)
        other = registry.register(twin_head(folder / "other", "on another encoder", encoder=digest))
        load = Load(clients=CLIENTS, seconds=arguments.seconds, warm_up=8, seed=1)
        steady = measured(mine.url, mine.key, load)
        wait = start(mine.url, mine.key, load)
        time.sleep(load.warm_up)
        taken: list[tuple[str, float]] = []
        pause = arguments.seconds / 8
        for name, version in (
            ("to a head on the same encoder", same.version),
            ("to another encoder, which must start", other.version),
            ("to the lexicon", "1"),
            ("back to the other encoder, within its grace time", other.version),
            (f"back to the first champion ({own.kind})", first),
        ):
            taken.append((name, followed(mine, registry, version)))
            time.sleep(pause)
        changing = wait()
    failures = {status: n for status, n in changing.statuses.items() if status != "201"}
    rows = [
        ("figure", "steady", "while the champion changes", "ratio", "goal"),
        ("requests/s", steady.per_second, changing.per_second,
         f"{changing.per_second / steady.per_second:.2f}", ""),
        ("p99, ms", steady.p99, changing.p99, f"{changing.p99 / steady.p99:.2f}", "≤ 2"),
        ("failed requests", "", sum(failures.values()), "", "0"),
        *((f"seconds {name}", "", f"{seconds:.2f}", "", "≤ 10" if "must start" in name else "≤ 2")
          for name, seconds in taken),
    ]  # fmt: skip
    kept = {"steady": asdict(steady), "changing": asdict(changing), "followed": taken}
    report("promotion", rows, kept, {"steady": [steady.p99], "changing": [changing.p99]}, "p99, milliseconds")


if __name__ == "__main__":
    main()
