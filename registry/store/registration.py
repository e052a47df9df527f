"""Registration of bundles as versions, with the encoders that they need."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from registry.bundles.bundle import Bundle, BundleKind
from registry.encoders.export import Progress, build_encoder
from registry.encoders.sources import SentenceEncoderSource, joint_source
from registry.errors import ExportFailed, NotRegistered
from registry.store.model_registry import MODEL, ModelRegistry
from registry.store.records import EncoderRecord, VersionRecord


def register_with_encoder(
    registry: ModelRegistry,
    bundle: Bundle,
    *,
    work: Path,
    model: str = MODEL,
    alias: str | None = None,
    name: str | None = None,
    description: str | None = None,
    languages: Sequence[str] | None = None,
    progress: Progress = lambda _: None,
) -> VersionRecord:
    """Register a bundle as a version, and first the updated encoder if it is a joint version.

    Keeps what is registered already. Raises RegistryUnavailable; ExportFailed if a joint version updates another
    encoder than the default one; OutOfSpace if its vectors leave the space.
    """
    if bundle.manifest.kind is BundleKind.JOINT:
        ensure_encoder(registry, joint_source(bundle), work=work, progress=progress)
    return registry.register(
        bundle, model=model, alias=alias, name=name, description=description, languages=languages
    )


def ensure_encoder(
    registry: ModelRegistry,
    source: SentenceEncoderSource,
    *,
    work: Path,
    progress: Progress = lambda _: None,
    verify: bool = False,
) -> EncoderRecord:
    """Return the registered encoder of a source; build and register it in `work` if there is none.

    `verify`: compare it with sentence-transformers before it is registered.
    """
    try:
        return registry.encoder(source.digest)
    except NotRegistered:
        progress(f"building the encoder {source.name}")
    target = work / source.digest
    bundle = Bundle.open(target) if target.exists() else build_encoder(source, target, progress=progress)
    if verify:
        progress("comparing with sentence-transformers")
        source.verify(bundle)
    return registry.register_encoder(bundle)


def ensure_space_encoder(
    registry: ModelRegistry, folder: Path, space: str, *, work: Path, progress: Progress = lambda _: None
) -> EncoderRecord:
    """Register the encoder in a folder that sentence-transformers loads as the one that defines a space.

    Raises ExportFailed if the folder holds no such encoder, if its exported vectors aren't sentence-transformers' own,
    if the space is defined by another encoder, or if the encoder is registered for another space.
    """
    source = SentenceEncoderSource(path=folder, name=space, space=space)
    source.check()
    # An encoder with fewer layers than the default one has fewer states that heads may read.
    depth = source.depth
    source = replace(
        source, token_layers=tuple(layer for layer in source.token_layers if layer <= depth) or (depth,)
    )
    with suppress(NotRegistered):
        if (defining := registry.space_encoder(space).digest) != source.digest:
            raise ExportFailed(f"the space {space!r} is defined by another encoder already, {defining}")
    record = ensure_encoder(registry, source, work=work, progress=progress, verify=True)
    if record.space != space:
        raise ExportFailed(f"this encoder is registered already, for the space {record.space!r}")
    return record
