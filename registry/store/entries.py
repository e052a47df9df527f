"""The records of versions and encoders, as MLflow's entries and tags hold them. Never calls MLflow."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from registry.bundles.bundle import BundleKind, Manifest
from registry.store.records import EncoderRecord, VersionRecord

ROLE, DIGEST, KIND, ENCODER, METRICS, SPACE, NAME, DIMENSIONS, DATA, CODE, LANGUAGES = (
    f"valence.{key}"
    for key in (
        *("role", "digest", "kind", "encoder", "metrics", "space", "name", "dimensions"),
        *("data", "code", "languages"),
    )
)
_ENGLISH = (BundleKind.LEXICON, BundleKind.HEAD, BundleKind.JOINT)


def run_params(manifest: Manifest) -> dict[str, str]:
    """Return a bundle's settings and provenance as a run's params, cut to MLflow's 6,000 characters a value."""
    params = {f"settings.{name}": value for name, value in manifest.settings.items()}
    params |= {f"provenance.{name}": value for name, value in manifest.provenance.items()}
    return {name: str(value)[:6000] for name, value in params.items()}


def version_record(entry: Any, aliases: Mapping[str, list[str]]) -> VersionRecord:
    """Return the record of a version, whose aliases are listed by number."""
    tags = dict(entry.tags)
    version = str(entry.version)
    return VersionRecord(
        model=entry.name,
        version=version,
        kind=tags.get(KIND, "unknown"),
        digest=tags.get(DIGEST, f"unknown:{entry.name}/{version}"),
        encoder=tags.get(ENCODER),
        uri=entry.source or "",
        aliases=tuple(sorted(aliases.get(version, ()))),
        metrics=json.loads(tags.get(METRICS, "{}")),
        tags={name: value for name, value in tags.items() if name != METRICS},
        languages=_languages(tags),
        name=tags.get(NAME, ""),
        description=entry.description or "",
        created_at=datetime.fromtimestamp(entry.creation_timestamp / 1000, tz=UTC),
    )


def _languages(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Return the languages of a version; what `valence train` makes learns from English texts alone."""
    said = tags.get(LANGUAGES)
    if said is None:
        return ("en",) if tags.get(KIND) in _ENGLISH else ()
    return tuple(said.split())


def encoder_record(entry: Any) -> EncoderRecord:
    """Return the record of an encoder."""
    tags = entry.tags
    return EncoderRecord(
        digest=tags[ENCODER],
        bundle=tags[DIGEST],
        name=tags[NAME],
        space=tags.get(SPACE),
        dimensions=int(tags[DIMENSIONS]),
        uri=entry.source,
    )
