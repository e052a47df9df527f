"""The fleet: what is published when versions, aliases and replicas change."""

import asyncio
from datetime import UTC, datetime

import pytest

from registry.errors import BundleInvalid, RegistryUnavailable
from registry.records import VersionRecord
from serving.catalogue import State
from serving.errors import ModelNotReady, NotFound
from serving.fleet import Fleet
from serving.routing import Arm, choose

pytestmark = pytest.mark.anyio


def version(
    number: str, *aliases: str, encoder: str | None = "e", digest: str | None = None
) -> VersionRecord:
    return VersionRecord(
        model="sentiment",
        version=number,
        kind="head",
        digest=digest or f"d{number}",
        encoder=encoder,
        uri=f"file:///bundles/{number}",
        aliases=aliases,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


class Shelf:
    """A registry in memory."""

    def __init__(self, *records: VersionRecord) -> None:
        self.records = list(records)
        self.down = False

    def models(self) -> list[str]:
        if self.down:
            raise RegistryUnavailable("MLflow is down")
        return sorted({record.model for record in self.records})

    def versions(self, model: str) -> list[VersionRecord]:
        return [record for record in self.records if record.model == model]


class Loader:
    """Replicas that load what they are told to, but for what is broken."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.broken: set[str] = set()

    async def load(self, record: VersionRecord) -> None:
        if record.digest in self.broken:
            raise BundleInvalid(f"{record.digest} has no head")
        self.loaded.append(record.version)


async def test_versions_are_ready_once_a_replica_has_tried_them_champion_first() -> None:
    loader = Loader()
    fleet = Fleet(Shelf(version("1"), version("2", "champion")), loader.load, encoder="e")
    await fleet.look()
    assert loader.loaded == ["2", "1"]
    choice = choose(fleet.catalogue, "sentiment", None)
    assert (choice.record.version, choice.arm) == ("2", Arm.CHAMPION)


async def test_a_named_version_is_never_rerouted() -> None:
    fleet = Fleet(Shelf(version("1"), version("2", "champion")), Loader().load, encoder="e")
    await fleet.look()
    choice = choose(fleet.catalogue, "sentiment", "1")
    assert (choice.record.version, choice.arm) == ("1", Arm.NAMED)


async def test_an_alias_moved_elsewhere_is_followed_without_loading_again() -> None:
    shelf, loader = Shelf(version("1"), version("2", "champion")), Loader()
    fleet = Fleet(shelf, loader.load, encoder="e")
    await fleet.look()
    shelf.records = [version("1", "champion"), version("2")]
    await fleet.look()
    assert choose(fleet.catalogue, "sentiment", None).record.version == "1"
    assert loader.loaded == ["2", "1"]


async def test_a_broken_version_is_failed_with_its_reason_and_the_others_answer() -> None:
    loader = Loader()
    loader.broken.add("d1")
    fleet = Fleet(Shelf(version("1"), version("2", "champion")), loader.load, encoder="e")
    await fleet.look()
    entry = fleet.catalogue.versions("sentiment")["1"]
    assert (entry.state, entry.reason) == (State.FAILED, "d1 has no head")
    with pytest.raises(ModelNotReady, match="no head"):
        choose(fleet.catalogue, "sentiment", "1")
    assert choose(fleet.catalogue, "sentiment", None).record.version == "2"


async def test_a_version_of_another_encoder_is_absent_and_a_lexicon_needs_none() -> None:
    fleet = Fleet(
        Shelf(version("1", encoder=None), version("2", encoder="other")), Loader().load, encoder="e"
    )
    await fleet.look()
    states = {name: entry.state for name, entry in fleet.catalogue.versions("sentiment").items()}
    assert states == {"1": State.READY, "2": State.ABSENT}


async def test_unknown_models_and_versions_are_not_found() -> None:
    fleet = Fleet(Shelf(version("1", "champion")), Loader().load, encoder="e")
    await fleet.look()
    with pytest.raises(NotFound, match="model 'other'"):
        choose(fleet.catalogue, "other", None)
    with pytest.raises(NotFound, match="version '9'"):
        choose(fleet.catalogue, "sentiment", "9")


async def test_a_watcher_is_told_of_a_change_at_once_and_of_no_change_in_the_end() -> None:
    shelf = Shelf(version("1", "champion"))
    fleet = Fleet(shelf, Loader().load, encoder="e")
    waiting = asyncio.create_task(fleet.watch(0, timeout=60))
    await asyncio.sleep(0)
    await fleet.look()
    assert (await waiting).revision == 1
    assert (await fleet.watch(1, timeout=0.01)).revision == 1


async def test_a_look_that_finds_nothing_new_publishes_nothing() -> None:
    fleet = Fleet(Shelf(version("1", "champion")), Loader().load, encoder="e")
    await fleet.look()
    await fleet.look()
    assert fleet.catalogue.revision == 1


async def test_a_registry_that_is_down_leaves_the_catalogue_as_it_was() -> None:
    shelf = Shelf(version("1", "champion"))
    fleet = Fleet(shelf, Loader().load, encoder="e")
    await fleet.look()
    shelf.down = True
    following = asyncio.create_task(fleet.follow(0.001))
    assert (await fleet.watch(1, timeout=0.05)).champion("sentiment").version == "1"
    assert not following.done()
    following.cancel()
