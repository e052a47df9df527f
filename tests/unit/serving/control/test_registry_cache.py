"""What is read of the registry, and how often."""

from typing import Any

from registry.store.records import VersionRecord
from serving.control.registry_cache import RegistryCache
from tests.support.app import new_record


class Registry:
    """A registry of some models with one version each; counts what is asked for."""

    def __init__(self) -> None:
        self.names = ["one"]
        self.asked: list[str] = []

    def models(self) -> list[str]:
        self.asked.append("models")
        return list(self.names)

    def revision(self, model: str) -> str:
        self.asked.append(f"revision of {model}")
        return "1"

    def versions(self, model: str) -> list[VersionRecord]:
        self.asked.append(f"versions of {model}")
        return [new_record("1")]


def test_models_are_listed_now_and_then_and_their_revisions_read_each_time() -> None:
    now = 0.0
    registry: Any = Registry()
    cache = RegistryCache(registry, clock=lambda: now)
    cache.read()
    assert registry.asked == ["models", "revision of one", "versions of one"]
    registry.names = ["two"]
    registry.asked.clear()
    now = 4.0
    cache.read()
    assert (registry.asked, list(cache.versions)) == (["revision of one"], ["one"])
    registry.asked.clear()
    now = 5.0
    cache.read()
    assert registry.asked == ["models", "revision of two", "versions of two"]
    assert list(cache.versions) == ["two"]
