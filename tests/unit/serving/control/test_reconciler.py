"""The reconciler: its catalogs when versions, aliases and replicas change."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from registry.errors import BundleInvalid, NotRegistered, RegistryUnavailable
from registry.store.records import EncoderRecord, VersionRecord
from serving.control.backoff import RETRY_SECONDS
from serving.control.pool import EncoderReplicas, EncoderStatus
from serving.control.reconciler import Reconciler
from serving.core.catalog import VersionState
from serving.errors import ModelNotReady, NotFound, NotReady
from serving.predictions.routing import Arm, Traffic, choose

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


def encoder(digest: str, *, space: str | None = "space") -> EncoderRecord:
    return EncoderRecord(
        digest=digest, bundle=digest, name=digest, space=space, dimensions=4, uri="file:///e"
    )


class FakeModelRegistry:
    """A registry in memory: versions, and encoders of which `e` defines the space."""

    def __init__(self, *records: VersionRecord, outside: Sequence[str] = ()) -> None:
        self.records = list(records)
        self.outside = outside
        self.down = False

    def models(self) -> list[str]:
        if self.down:
            raise RegistryUnavailable("MLflow is down")
        return sorted({record.model for record in self.records})

    def revision(self, model: str) -> str:
        return str(self.records)

    def versions(self, model: str) -> list[VersionRecord]:
        return [record for record in self.records if record.model == model]

    def encoder(self, digest: str) -> EncoderRecord:
        if digest == "unregistered":
            raise NotRegistered("no such encoder")
        return encoder(digest, space=None if digest in self.outside else "space")

    def space_encoder(self, space: str) -> EncoderRecord:
        if space == "unknown":
            raise NotRegistered("no encoder defines it")
        return encoder("e" if space == "space" else f"of-{space}", space=space)


class FakePool:
    """Replicas that start at once and load everything but broken versions, unless a test says otherwise."""

    def __init__(self, *running: str) -> None:
        self.encoders = {digest: EncoderReplicas(status=EncoderStatus.RUNNING) for digest in running}
        self.loaded: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.slow = False
        self.unreachable = False
        self.stopped: list[str] = []

    async def states(self) -> Mapping[str, EncoderReplicas]:
        return dict(self.encoders)

    async def start(self, record: EncoderRecord) -> None:
        if record.digest in self.broken:
            raise BundleInvalid(f"{record.digest} is corrupt")
        self.encoders[record.digest] = EncoderReplicas(
            status=EncoderStatus.STARTING if self.slow else EncoderStatus.RUNNING
        )

    async def stop(self, name: str) -> None:
        self.stopped.append(name)
        del self.encoders[name]

    async def load(self, digest: str, version: VersionRecord) -> None:
        if self.unreachable:
            raise NotReady("no replica answers")
        if version.digest in self.broken:
            raise BundleInvalid(f"{version.digest} has no head")
        self.loaded.append((digest, version.version))


class FakeLifecycle:
    """A lifecycle that keeps what the reconciler reports; `before` are the former champions."""

    def __init__(self, *champions: str) -> None:
        self.before = champions
        self.seen: str | None = None
        self.failures: list[tuple[str, str]] = []

    async def reconcile(self, model: str, champion: str | None) -> None:
        self.seen = champion

    async def failed(self, record: VersionRecord, reason: str) -> None:
        self.failures.append((record.version, reason))

    async def champions(self, model: str) -> Sequence[str]:
        return self.before


@dataclass
class ManualClock:
    """A clock that moves when a test moves it."""

    time: float = 0.0

    def __call__(self) -> float:
        return self.time


class LiveSpace:
    """The space that should be live, as a test says."""

    def __init__(self) -> None:
        self.space = "space"

    async def __call__(self) -> str:
        return self.space


async def always(space: str) -> bool:
    return True


async def none() -> list[tuple[str, str]]:
    return []


def build_reconciler(registry: FakeModelRegistry, pool: FakePool, **options: Any) -> Reconciler:
    return Reconciler(
        registry,
        pool,
        space="space",
        model="sentiment",
        **{
            "live_space": LiveSpace(),
            "is_caught_up": always,
            "experiment_versions": none,
            "lifecycle": FakeLifecycle(),
        }
        | options,
    )


def answering_version(reconciler: Reconciler, named: str | None = None) -> str:
    return choose(reconciler.catalog, Traffic(), "sentiment", named, "anybody").record.version


def states(reconciler: Reconciler) -> dict[str, VersionState]:
    return {name: entry.state for name, entry in reconciler.catalog.versions("sentiment").items()}


async def reconcile_repeatedly(reconciler: Reconciler, times: int = 2) -> None:
    """The pool's answer to a start is seen at the look after it."""
    for _ in range(times):
        await reconciler.reconcile()


async def test_versions_are_ready_once_the_replicas_have_tried_them_champion_first() -> None:
    pool = FakePool("e")
    reconciler = build_reconciler(FakeModelRegistry(version("1"), version("2", "champion")), pool)
    await reconciler.reconcile()
    assert pool.loaded == [("e", "2"), ("e", "1")]
    choice = choose(reconciler.catalog, Traffic(), "sentiment", None, "anybody")
    assert (choice.record.version, choice.arm) == ("2", Arm.CHAMPION)


async def test_the_champions_encoder_is_started_and_answers_once_it_runs() -> None:
    pool = FakePool()
    pool.slow = True
    reconciler = build_reconciler(FakeModelRegistry(version("1", "champion", encoder="own")), pool)
    await reconcile_repeatedly(reconciler)
    assert states(reconciler) == {"1": VersionState.STARTING}
    pool.encoders["own"] = EncoderReplicas(status=EncoderStatus.RUNNING)
    await reconciler.reconcile()
    assert answering_version(reconciler) == "1"
    assert reconciler.catalog.embedder == "own"


async def test_a_version_of_an_unneeded_encoder_is_absent_until_it_is_requested() -> None:
    pool = FakePool()
    reconciler = build_reconciler(
        FakeModelRegistry(version("1", encoder="own"), version("2", "champion")), pool
    )
    await reconcile_repeatedly(reconciler)
    assert states(reconciler) == {"1": VersionState.ABSENT, "2": VersionState.READY}
    reconciler.request_versions([("sentiment", "1")])
    await reconcile_repeatedly(reconciler)
    assert answering_version(reconciler, "1") == "1"


async def test_clients_have_few_encoders_started_and_none_stopped_for_another() -> None:
    pool, clock = FakePool(), ManualClock()
    versions = [version(str(number), encoder=f"own-{number}") for number in range(1, 5)]
    registry = FakeModelRegistry(*versions, version("9", "champion"))
    reconciler = build_reconciler(registry, pool, clock=clock, grace=10)
    for number in "123":
        reconciler.request_versions([("sentiment", number)], by_clients=True)
    await reconcile_repeatedly(reconciler)
    assert set(pool.encoders) == {"e", "own-1"}
    reconciler.request_versions([("sentiment", "4")])
    clock.time += 9
    reconciler.request_versions([("sentiment", "2"), ("sentiment", "1")], by_clients=True)
    await reconcile_repeatedly(reconciler)
    assert set(pool.encoders) == {"e", "own-1", "own-4"}
    assert pool.stopped == []
    # Nobody names version 1 any more, but its encoder takes its room until it has ended.
    for _ in range(4):
        clock.time += 9
        reconciler.request_versions([("sentiment", "2")], by_clients=True)
        await reconcile_repeatedly(reconciler)
        assert len(pool.encoders.keys() - {"e", "own-4"}) <= 1
    assert "own-2" in pool.encoders
    assert "own-1" in pool.stopped


async def test_no_room_for_clients_leaves_champions_and_challengers_theirs() -> None:
    async def challengers() -> list[tuple[str, str]]:
        return [("sentiment", "2")]

    pool = FakePool()
    registry = FakeModelRegistry(
        version("1", encoder="own-1"), version("2", encoder="own-2"), version("9", "champion")
    )
    reconciler = build_reconciler(registry, pool, experiment_versions=challengers, client_encoders=0)
    reconciler.request_versions([("sentiment", "1"), ("sentiment", "2"), ("sentiment", "9")], by_clients=True)
    await reconcile_repeatedly(reconciler)
    assert set(pool.encoders) == {"e", "own-2"}


async def test_a_champion_outside_the_space_runs_with_the_spaces_encoder() -> None:
    pool = FakePool()
    registry = FakeModelRegistry(version("1", "champion", encoder="foreign"), outside=["foreign"])
    reconciler = build_reconciler(registry, pool)
    await reconcile_repeatedly(reconciler)
    place = reconciler.catalog.placement(reconciler.catalog.champion("sentiment"))
    assert (place.scorer, place.embedder) == ("foreign", "e")


async def test_another_space_answers_once_its_encoder_runs_and_it_is_whole_and_the_one_before_is_still_reached() -> (
    None
):
    pool, live, behind = FakePool(), LiveSpace(), {"next"}

    async def caught_up(space: str) -> bool:
        return space not in behind

    reconciler = build_reconciler(
        FakeModelRegistry(version("1", "champion")), pool, live_space=live, is_caught_up=caught_up
    )
    await reconcile_repeatedly(reconciler)
    assert (reconciler.catalog.space, reconciler.catalog.embedder) == ("space", "e")
    live.space, pool.slow = "next", True
    await reconcile_repeatedly(reconciler)
    assert (reconciler.catalog.space, reconciler.catalog.embedder) == ("space", "e")
    pool.encoders["of-next"] = EncoderReplicas(status=EncoderStatus.RUNNING)
    await reconciler.reconcile()
    assert (reconciler.catalog.space, reconciler.catalog.embedders_by_space) == ("space", {"next": "of-next"})
    behind.clear()
    await reconciler.reconcile()
    catalog = reconciler.catalog
    assert (catalog.space, catalog.embedder, catalog.space_encoders) == ("next", "of-next", {"of-next"})
    place = catalog.placement(catalog.champion("sentiment"))
    assert (place.scorer, place.embedder, place.space) == ("e", "of-next", "next")
    assert catalog.placement_in("next").embedder == "of-next"
    before = catalog.placement_in("space")
    assert (before.scorer, before.embedder, before.space) == ("e", "e", "space")
    with pytest.raises(ModelNotReady):
        catalog.placement_in("elsewhere")
    # And back, immediately.
    live.space = "space"
    await reconciler.reconcile()
    assert (reconciler.catalog.space, reconciler.catalog.embedder) == ("space", "e")


async def test_what_reads_texts_itself_is_loaded_in_the_other_space_before_it_answers() -> None:
    pool, live = FakePool(), LiveSpace()
    reconciler = build_reconciler(
        FakeModelRegistry(version("1", "champion", encoder=None)), pool, live_space=live
    )
    await reconcile_repeatedly(reconciler)
    live.space = "next"
    await reconciler.reconcile()
    pool.unreachable = True
    await reconciler.reconcile()
    assert reconciler.catalog.space == "space"
    assert answering_version(reconciler) == "1"
    pool.unreachable = False
    await reconciler.reconcile()
    assert reconciler.catalog.space == "next"
    assert answering_version(reconciler) == "1"
    assert pool.loaded == [("e", "1"), ("of-next", "1")]


async def test_a_space_without_an_encoder_leaves_the_present_one() -> None:
    live = LiveSpace()
    live.space = "unknown"
    reconciler = build_reconciler(FakeModelRegistry(version("1", "champion")), FakePool(), live_space=live)
    await reconcile_repeatedly(reconciler)
    assert reconciler.catalog.space == "space"
    assert answering_version(reconciler) == "1"


async def test_a_new_reconciler_while_the_spaces_encoder_starts_unseats_nobody() -> None:
    pool = FakePool("own")
    pool.slow = True
    registry = FakeModelRegistry(version("1", "champion", encoder="own"), outside=["own"])
    reconciler = build_reconciler(registry, pool)
    await reconcile_repeatedly(reconciler)
    assert reconciler.catalog.revision == 0
    pool.encoders["e"] = EncoderReplicas(status=EncoderStatus.RUNNING)
    await reconciler.reconcile()
    assert answering_version(reconciler) == "1"


async def test_a_lexicon_is_scored_where_texts_are_embedded() -> None:
    reconciler = build_reconciler(FakeModelRegistry(version("1", "champion", encoder=None)), FakePool())
    await reconcile_repeatedly(reconciler)
    place = reconciler.catalog.placement(reconciler.catalog.champion("sentiment"))
    assert (place.scorer, place.embedder) == ("e", "e")


async def test_the_champion_before_answers_until_the_next_ones_encoder_runs() -> None:
    pool = FakePool("e")
    registry = FakeModelRegistry(version("1", "champion"), version("2", encoder="own"))
    reconciler = build_reconciler(registry, pool)
    await reconciler.reconcile()
    pool.slow = True
    registry.records = [version("1"), version("2", "champion", encoder="own")]
    await reconcile_repeatedly(reconciler)
    assert answering_version(reconciler) == "1"
    pool.encoders["own"] = EncoderReplicas(status=EncoderStatus.RUNNING)
    await reconciler.reconcile()
    assert answering_version(reconciler) == "2"


async def test_a_broken_champion_leaves_the_previous_one_answering_and_is_reported_once() -> None:
    pool, lifecycle = FakePool("e"), FakeLifecycle()
    registry = FakeModelRegistry(version("1", "champion"), version("2"))
    reconciler = build_reconciler(registry, pool, lifecycle=lifecycle, clock=(clock := ManualClock()))
    pool.broken.add("d2")
    await reconciler.reconcile()
    registry.records = [version("1"), version("2", "champion")]
    for _ in range(3):
        clock.time += RETRY_SECONDS
        await reconciler.reconcile()
    assert answering_version(reconciler) == "1"
    assert states(reconciler)["2"] is VersionState.FAILED
    assert lifecycle.failures == [("2", "d2 has no head")]


async def test_a_new_reconciler_has_the_last_champion_that_can_answer_stand_in_for_a_broken_one() -> None:
    pool = FakePool("e")
    pool.broken.add("d3")
    registry = FakeModelRegistry(version("1"), version("2"), version("3", "champion"))
    reconciler = build_reconciler(registry, pool, lifecycle=FakeLifecycle("3", "1", "2"))
    await reconciler.reconcile()
    assert answering_version(reconciler) == "1"


@pytest.mark.parametrize(
    ("former", "answers"), [(("3", "1"), "1"), (("3",), "2"), ((), None)], ids=["last", "newest", "never-one"]
)
async def test_a_champion_that_was_deleted_is_stood_in_for(
    former: tuple[str, ...], answers: str | None
) -> None:
    """Somebody deleted version 3 in MLflow, and with it the alias."""
    registry = FakeModelRegistry(version("1"), version("2"))
    reconciler = build_reconciler(registry, FakePool("e"), lifecycle=FakeLifecycle(*former))
    with capture_logs() as logs:
        await reconcile_repeatedly(reconciler)
    told = [log for log in logs if log["event"] == "champion.substituted"]
    if answers is None:
        with pytest.raises(ModelNotReady):
            answering_version(reconciler)
        assert told == []
    else:
        assert answering_version(reconciler) == answers
        assert [(log["model"], log["version"], log["former"]) for log in told] == [
            ("sentiment", answers, "3")
        ]
    registry.records = [version("1", "champion"), version("2")]
    await reconciler.reconcile()
    assert answering_version(reconciler) == "1"


@pytest.mark.parametrize("own", ["corrupt", "unregistered"])
async def test_an_encoder_that_can_not_be_started_fails_its_versions_with_the_reason(own: str) -> None:
    pool = FakePool("e")
    pool.broken.add("corrupt")
    registry = FakeModelRegistry(version("1", "champion"), version("2", encoder=own))
    reconciler = build_reconciler(registry, pool)
    await reconciler.reconcile()
    reconciler.request_versions([("sentiment", "2")])
    await reconciler.reconcile()
    entry = reconciler.catalog.versions("sentiment")["2"]
    assert entry.state is VersionState.FAILED
    assert entry.reason
    assert answering_version(reconciler) == "1"


async def test_replicas_that_do_not_come_up_are_cleared_away_and_tried_again() -> None:
    pool, clock = FakePool("e"), ManualClock()
    registry = FakeModelRegistry(version("1", "champion"), version("2", encoder="own"))
    reconciler = build_reconciler(registry, pool, clock=clock)
    reconciler.request_versions([("sentiment", "2")])
    pool.slow = True
    await reconcile_repeatedly(reconciler)
    pool.encoders["own"] = EncoderReplicas(status=EncoderStatus.FAILED, reason="no memory")
    await reconciler.reconcile()
    entry = reconciler.catalog.versions("sentiment")["2"]
    assert (entry.state, entry.reason, pool.stopped) == (VersionState.FAILED, "no memory", ["own"])
    pool.slow = False
    clock.time += RETRY_SECONDS
    await reconcile_repeatedly(reconciler)
    assert answering_version(reconciler, "2") == "2"


async def test_an_encoder_runs_on_for_the_grace_time_and_going_back_is_instant() -> None:
    pool, clock = FakePool(), ManualClock()
    old, new = version("1", encoder="old"), version("2", encoder="new")
    registry = FakeModelRegistry(version("1", "champion", encoder="old"), new)
    reconciler = build_reconciler(registry, pool, grace=300, clock=clock)
    await reconcile_repeatedly(reconciler)
    registry.records = [old, version("2", "champion", encoder="new")]
    await reconcile_repeatedly(reconciler)
    clock.time += 299
    await reconciler.reconcile()
    assert states(reconciler) == {"1": VersionState.READY, "2": VersionState.READY}
    registry.records = [version("1", "champion", encoder="old"), new]
    await reconciler.reconcile()
    assert answering_version(reconciler) == "1"


async def test_an_encoder_is_stopped_after_the_grace_time_once_nobody_is_sent_there() -> None:
    pool, clock = FakePool("old", "e"), ManualClock()
    reconciler = build_reconciler(
        FakeModelRegistry(version("1", encoder="old"), version("2", "champion")), pool, clock=clock
    )
    await reconciler.reconcile()
    assert states(reconciler)["1"] is VersionState.READY
    clock.time += 301
    await reconciler.reconcile()
    assert pool.stopped == ["old"]
    assert states(reconciler)["1"] is VersionState.ABSENT


async def test_what_an_experiment_tries_is_started() -> None:
    async def tried() -> list[tuple[str, str]]:
        return [("sentiment", "2")]

    pool = FakePool()
    reconciler = build_reconciler(
        FakeModelRegistry(version("1", "champion"), version("2", encoder="own")),
        pool,
        experiment_versions=tried,
    )
    await reconcile_repeatedly(reconciler)
    assert states(reconciler) == {"1": VersionState.READY, "2": VersionState.READY}


async def test_a_new_reconciler_finds_what_runs_and_publishes_it_whole() -> None:
    pool = FakePool("e", "own")
    registry = FakeModelRegistry(version("1", "champion"), version("2", encoder="own"))
    reconciler = build_reconciler(registry, pool, first_revision=1_000)
    await reconciler.reconcile()
    assert reconciler.catalog.revision == 1_000
    assert states(reconciler) == {"1": VersionState.READY, "2": VersionState.READY}


async def test_a_new_reconciler_unseats_nobody_while_it_can_not_reach_the_replicas() -> None:
    pool = FakePool("e")
    pool.unreachable = True
    reconciler = build_reconciler(FakeModelRegistry(version("1", "champion")), pool)
    await reconciler.reconcile()
    assert not reconciler.catalog.models
    pool.unreachable = False
    await reconciler.reconcile()
    assert answering_version(reconciler) == "1"


async def test_a_named_version_is_never_rerouted() -> None:
    reconciler = build_reconciler(FakeModelRegistry(version("1"), version("2", "champion")), FakePool("e"))
    await reconciler.reconcile()
    choice = choose(reconciler.catalog, Traffic(), "sentiment", "1", "anybody")
    assert (choice.record.version, choice.arm) == ("1", Arm.NAMED)


async def test_an_alias_moved_elsewhere_is_followed_without_loading_again() -> None:
    pool = FakePool("e")
    registry = FakeModelRegistry(version("1"), version("2", "champion"))
    reconciler = build_reconciler(registry, pool)
    await reconciler.reconcile()
    registry.records = [version("1", "champion"), version("2")]
    await reconciler.reconcile()
    assert answering_version(reconciler) == "1"
    assert pool.loaded == [("e", "2"), ("e", "1")]


async def test_a_broken_version_is_failed_with_its_reason_and_the_others_answer() -> None:
    pool = FakePool("e")
    pool.broken.add("d1")
    reconciler = build_reconciler(FakeModelRegistry(version("1"), version("2", "champion")), pool)
    await reconciler.reconcile()
    entry = reconciler.catalog.versions("sentiment")["1"]
    assert (entry.state, entry.reason) == (VersionState.FAILED, "d1 has no head")
    with pytest.raises(ModelNotReady, match="no head"):
        answering_version(reconciler, "1")
    assert answering_version(reconciler) == "2"


async def test_unknown_models_and_versions_are_not_found() -> None:
    reconciler = build_reconciler(FakeModelRegistry(version("1", "champion")), FakePool("e"))
    await reconciler.reconcile()
    with pytest.raises(NotFound, match="model 'other'"):
        choose(reconciler.catalog, Traffic(), "other", None, "anybody")
    with pytest.raises(NotFound, match="version '9'"):
        answering_version(reconciler, "9")


async def test_a_watcher_gets_a_change_at_once_and_no_change_at_the_timeout() -> None:
    reconciler = build_reconciler(FakeModelRegistry(version("1", "champion")), FakePool("e"))
    waiting = asyncio.create_task(reconciler.watch(0, timeout=60))
    await asyncio.sleep(0)
    await reconciler.reconcile()
    assert (await waiting).revision == 1
    assert (await reconciler.watch(1, timeout=0.01)).revision == 1


async def test_a_look_that_finds_nothing_new_publishes_nothing() -> None:
    reconciler = build_reconciler(FakeModelRegistry(version("1", "champion")), FakePool("e"))
    await reconciler.reconcile()
    await reconciler.reconcile()
    assert reconciler.catalog.revision == 1


async def test_a_registry_that_is_down_leaves_the_catalog_as_it_was() -> None:
    registry = FakeModelRegistry(version("1", "champion"))
    reconciler = build_reconciler(registry, FakePool("e"))
    await reconciler.reconcile()
    registry.down = True
    following = asyncio.create_task(reconciler.run(0.001))
    assert (await reconciler.watch(1, timeout=0.05)).champion("sentiment").version == "1"
    assert not following.done()
    following.cancel()


async def test_a_model_that_fails_leaves_the_others_alone_and_is_named() -> None:
    class Odd(FakeModelRegistry):
        def versions(self, model: str) -> list[VersionRecord]:
            if model == "odd":
                raise RegistryUnavailable("MLflow can't answer")
            return super().versions(model)

    class Partial(FakeLifecycle):
        async def reconcile(self, model: str, champion: str | None) -> None:
            if model == "another":
                raise NotReady("the history can't be written")
            await super().reconcile(model, champion)

    registry = Odd(
        *(replace(version("1"), model=model) for model in ("another", "odd")), version("1", "champion")
    )
    lifecycle = Partial()
    reconciler = build_reconciler(registry, FakePool("e"), lifecycle=lifecycle)
    with capture_logs() as logs:
        await reconciler.reconcile()
    assert answering_version(reconciler) == "1"
    assert lifecycle.seen == "1"
    named = [(log["event"], log["model"]) for log in logs if log["log_level"] == "warning"]
    assert named == [("model.unreadable", "odd"), ("model.postponed", "another")]
    registry.records = [version("1"), version("2", "champion"), replace(version("1"), model="odd")]
    await reconcile_repeatedly(reconciler)
    assert answering_version(reconciler) == "2"
