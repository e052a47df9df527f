"""Model versions for a live platform: sound and broken heads on the champion's encoder, and copies of it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from db.connection.databases import sibling_url
from db.embedded.server import EmbeddedPostgres
from registry.bundles.bundle import Bundle, Manifest
from registry.bundles.manifest_schema import HEAD_WEIGHTS, UP, UPDATE
from registry.encoders.sources import default_source
from registry.store.builtin_versions import open_builtin
from registry.store.model_registry import ModelRegistry
from registry.store.records import EncoderRecord, VersionRecord
from tests.support.live import LivePlatform

Weights = dict[str, NDArray[np.float16]]


def registry_at(home: Path) -> ModelRegistry:
    """Return the registry of a platform on embedded defaults, as another MLflow client reaches it."""
    url = sibling_url(EmbeddedPostgres(home).url("valence"), "_mlflow")
    return ModelRegistry(url, artifact_root=home / "artifacts")


def registry_of(platform: LivePlatform) -> ModelRegistry:
    """Return the registry of a live platform."""
    return registry_at(platform.home)


def twin_head(
    folder: Path,
    name: str,
    *,
    encoder: str | None = None,
    change: Callable[[Weights], None] = lambda _: None,
) -> Bundle:
    """Return the built-in champion's head as a separate version, on another encoder or with other weights."""
    champion = open_builtin("joint")
    folder.mkdir(parents=True)
    weights = load_file(champion.file(HEAD_WEIGHTS))
    change(weights)
    save_file(weights, folder / HEAD_WEIGHTS)
    manifest = replace(open_builtin("head").manifest, name=name, encoder=encoder or champion.manifest.encoder)
    return Bundle.seal(folder, manifest)


def twin_joint(folder: Path, name: str, *, change: Callable[[Weights], None] = lambda _: None) -> Bundle:
    """Return the built-in champion under another name, or with another update."""
    champion = open_builtin("joint")
    folder.mkdir(parents=True)
    update = load_file(champion.file(UPDATE))
    change(update)
    save_file(update, folder / UPDATE)
    shutil.copy(champion.file(HEAD_WEIGHTS), folder / HEAD_WEIGHTS)
    encoder = replace(default_source(), update=folder / UPDATE).digest
    return Bundle.seal(folder, replace(champion.manifest, name=name, encoder=encoder))


def twin_encoder(
    registry: ModelRegistry,
    folder: Path,
    name: str,
    digest: str,
    *,
    space: str | None,
    of: EncoderRecord | None = None,
) -> str:
    """Register a copy of an encoder, by default the champion's, under another digest; return that digest."""
    champion = open_builtin("joint").manifest
    assert champion.encoder is not None
    original = Path((of or registry.encoder(champion.encoder)).uri.removeprefix("file://"))
    shutil.copytree(original, folder)
    manifest: Manifest = replace(Bundle.open(original).manifest, name=name, encoder=digest, space=space)
    registry.register_encoder(Bundle.seal(folder, manifest))
    return digest


def register_version(platform: LivePlatform, bundle: Bundle) -> VersionRecord:
    """Register the bundle as a version of the default model."""
    return registry_of(platform).register(bundle)


def not_a_number(weights: Weights) -> None:
    """Make the head give scores that are not finite."""
    weights["out.bias"] = np.full_like(weights["out.bias"], np.nan)


def too_narrow(weights: Weights) -> None:
    """Make the head fit states of another width."""
    weights["project.weight"] = np.ascontiguousarray(weights["project.weight"][:100])


def far_away(update: Weights) -> None:
    """Make the update leave the space."""
    random = np.random.default_rng(0)
    for name, array in update.items():
        if name.endswith(UP):
            update[name] = array + random.normal(0, 0.5, array.shape).astype(np.float16)


def without_a_tensor(weights: Weights) -> None:
    """Make the head impossible to load."""
    del weights["query.weight"]
