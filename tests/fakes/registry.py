"""A fake of the model registry."""

from collections.abc import Callable, Mapping

from registry.errors import NotRegistered
from registry.store.records import EncoderRecord, VersionRecord


class FakeModelRegistry:
    """The versions of one model and its alias `champion`; `before` and `after` run around every move of the alias.

    `data` is the digest of the held-out set; `spaces` has the dimensions of each embedding space of an encoder.
    """

    def __init__(self, versions: Mapping[str, VersionRecord], champion: str | None) -> None:
        self.versions = dict(versions)
        self.champion = champion
        self.data: str | None = "d" * 64
        self.spaces: dict[str, int] = {}
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def champion_version(self, model: str) -> str | None:
        """Return the version that the alias names."""
        return self.champion

    def set_alias(self, model: str, alias: str, version: str, *, seconds: float | None = None) -> None:
        """Move the alias."""
        self.before()
        self.version(model, version)
        self.champion = version
        self.after()

    def version(self, model: str, version: str) -> VersionRecord:
        """Return one version."""
        if version not in self.versions:
            raise NotRegistered(f"{model} has no version {version}")
        return self.versions[version]

    def space_encoder(self, space: str) -> EncoderRecord:
        """Return the encoder that defines a space."""
        if space not in self.spaces:
            raise NotRegistered(f"no encoder defines {space}")
        return EncoderRecord(
            digest=space,
            bundle=space,
            name=space,
            space=space,
            dimensions=self.spaces[space],
            uri="file:///e",
        )

    def held_out_digest(self, model: str) -> str:
        """Return the digest of the set that versions are evaluated on."""
        if self.data is None:
            raise NotRegistered(f"there is no held-out set for {model!r}")
        return self.data
