"""The records of registered versions and encoders: frozen values that cross processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionRecord:
    """A registered version of a model.

    `version` is MLflow's number, as a string. `digest` is the bundle's. `encoder` is the identity of the encoder
    whose states the head reads, None if the version reads the text itself. `uri` is the bundle's location. A version
    that Valence didn't register has the kind `unknown` and can't be fetched. `languages`: the BCP 47 tags of those that
    it was made for, empty if nobody said. `name` and `description` are for people, and may be empty.
    """

    model: str
    version: str
    kind: str
    digest: str
    encoder: str | None
    uri: str
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    name: str = ""
    description: str = ""
    created_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderRecord:
    """A registered encoder. `digest` is its identity, `bundle` the digest of its built files."""

    digest: str
    bundle: str
    name: str
    space: str | None
    dimensions: int
    uri: str
