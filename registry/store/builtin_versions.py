"""The first versions of a fresh installation: a lexicon baseline, a head, a joint model, and their two encoders.

Adds what is missing and moves no alias that is set. Never trains or measures.
"""

import fcntl
import importlib.resources
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from registry.bundles.bundle import Bundle
from registry.data.held_out import HeldOutSet
from registry.encoders.export import Progress
from registry.encoders.sources import default_source, joint_source
from registry.errors import ExportFailed, NotRegistered
from registry.store.model_registry import CHAMPION, MODEL, ModelRegistry
from registry.store.records import VersionRecord
from registry.store.registration import ensure_encoder

# The order gives the version numbers.
BUILTIN = {
    "lexicon": "Adds up the words of a lexicon (VADER); the baseline. English.",
    "head": "Reads all-MiniLM-L6-v2 as it is, by a head that was trained on rated texts. English.",
    "joint": "All-MiniLM-L6-v2 and a head, trained together on rated texts; its vectors stay in the space. English.",
}


def bootstrap(
    registry: ModelRegistry,
    *,
    space: str,
    model: str = MODEL,
    work: Path,
    progress: Progress = lambda _: None,
    on_champion_ready: Callable[[], None] = lambda: None,
) -> list[VersionRecord]:
    """Register the lexicon as version 1, the head as 2, the joint model as 3, and the held-out set.

    Registers only what is missing, and makes the joint model champion unless a champion is set. The joint model's
    encoder is built first, then `on_champion_ready` is called, then the space's own encoder is built, which the head
    needs. If two processes of one machine call it, the second waits and finds everything done.

    Raises RegistryUnavailable, or ExportFailed if the space isn't the built-in one.
    """
    with _locked(work):
        own = default_source()
        if space != own.space:
            raise ExportFailed(f"no encoder is built in for the space {space!r}, only for {own.space!r}")
        bundles = [open_builtin(name) for name in BUILTIN]
        ensure_encoder(registry, joint_source(bundles[-1], own), work=work, progress=progress)
        progress("registering the first versions")
        records = [registry.register(bundle, model=model) for bundle in bundles]
        for bundle, record, text in zip(bundles, records, BUILTIN.values(), strict=True):
            if not record.description:
                registry.register(
                    bundle, model=model, name=record.name or bundle.manifest.name, description=text
                )
        try:
            registry.held_out_digest(model)
        except NotRegistered:
            registry.put_held_out(HeldOutSet.load_builtin())
        try:
            registry.champion(model)
        except NotRegistered:
            registry.set_alias(model, CHAMPION, records[-1].version)
        on_champion_ready()
        ensure_encoder(registry, own, work=work, progress=progress)
        return [registry.version(model, record.version) for record in records]


def open_builtin(name: str) -> Bundle:
    """Open the bundle of a version that comes with the package."""
    return Bundle.open(Path(str(importlib.resources.files("registry"))) / "builtin" / name)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    with (work / "bootstrap.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
