"""Champions with real MLflow and a real database: deaths at every point, races, moves by other clients."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from db.accounts.audit import AuditFilters, AuditRepository
from db.connection import engine
from db.connection.engine import Database
from db.experiments.experiments import ExperimentRepository, NewExperiment
from db.models.evaluations import EvaluationRepository, NewEvaluation
from db.models.promotions import Act, NewPromotion, PolicyExperiment, PromotionRepository
from registry.data.held_out import HeldOutSet
from registry.errors import RegistryUnavailable
from registry.store.model_registry import CHAMPION, ModelRegistry
from registry.store.records import VersionRecord
from serving.core.caller import Caller, Role
from serving.core.catalog import Catalog, CatalogEntry, VersionState
from serving.errors import Conflict, Refused
from serving.models.promotion import PromotionDecision, PromotionOutcome, PromotionService
from tests.support.heads import head
from tests.support.postgres import KEY, open_database
from tests.support.reports import report
from tests.support.row_factories import run_sql, wait_for_lock
from tests.support.tiny import TINY_SPACE

pytestmark = pytest.mark.anyio

ADA, BOB = (Caller(key_id=(key := uuid4()), holder_id=key, role=Role.ENGINEER) for _ in range(2))


class Case:
    """A model with three versions, the first one champion, and the services that act on it."""

    def __init__(self, database: Database, registry: ModelRegistry, folder: Path) -> None:
        self.database = database
        self.registry = registry
        self.model = f"model-{uuid4().hex[:8]}"
        self.history = PromotionRepository(database)
        encoder = registry.space_encoder(TINY_SPACE).digest
        for seed in range(1, 4):
            registry.register(head(folder / str(seed), encoder, seed=seed), model=self.model)
        registry.set_alias(self.model, CHAMPION, "1")

    def catalog(self) -> Catalog:
        versions = {
            record.version: CatalogEntry(record=record, state=VersionState.READY)
            for record in self.registry.versions(self.model)
        }
        return Catalog(models={self.model: versions})

    def promotions(self, *, grace: float = 60, registry: ModelRegistry | None = None) -> PromotionService:
        """Return the promotion service of another process."""
        return PromotionService(
            promotions=self.history,
            evaluations=EvaluationRepository(self.database),
            registry=registry or self.registry,
            catalog=self.catalog,
            grace_seconds=grace,
        )

    async def force(self, version: str, caller: Caller = ADA) -> PromotionOutcome:
        return await self.promotions().promote(self.model, version, caller, force=True, reason="a test")

    async def report(self, record: VersionRecord, accuracy: float) -> None:
        data = self.registry.held_out_digest(self.model)
        records = EvaluationRepository(self.database)
        result = await records.request(
            NewEvaluation(
                bundle_digest=record.digest, data_digest=data, model=self.model, version=record.version
            )
        )
        outcome = report(record.version, accuracy, bundle=record.digest, data=data, model=self.model)
        await records.finish(result.id, outcome.dump())

    async def acts(self) -> list[tuple[str, str | None]]:
        page = await self.history.history(self.model)
        return [(period.promotion.act, period.promotion.version_to) for period in reversed(page.items)]

    async def audited(self) -> list[str]:
        entries = (await AuditRepository(self.database).list(AuditFilters(subject=self.model))).items
        return [entry.action for entry in reversed(entries) if entry.action.startswith("champion.")]


@pytest.fixture
def case(database: Database, registry: ModelRegistry, tmp_path: Path) -> Case:
    result = Case(database, registry, tmp_path / "heads")
    registry.put_held_out(HeldOutSet(examples=HeldOutSet.load_builtin().examples[:30]))
    return result


async def test_gates_pass_and_fail_then_force_and_everything_is_audited(case: Case) -> None:
    one, two, three = case.registry.versions(case.model)
    for record, accuracy in ((one, 0.7), (two, 0.75), (three, 0.5)):
        await case.report(record, accuracy)
    promotions = case.promotions()
    assert (await promotions.promote(case.model, "2", ADA)).changed
    with pytest.raises(Refused, match="a gate failed"):
        await promotions.promote(case.model, "3", BOB)
    forced = await promotions.promote(case.model, "3", BOB, force=True, reason="an incident")
    assert case.registry.champion_version(case.model) == "3"
    assert forced.promotion is not None
    assert (forced.promotion.forced, forced.promotion.gated) == (True, False)
    assert not forced.promotion.evidence["gates"]["passed"]
    assert await case.audited() == [
        "champion.bootstrap", "champion.promote", "champion.refuse", "champion.promote",
    ]  # fmt: skip
    refusal = (await AuditRepository(case.database).list(AuditFilters(subject=case.model))).items[1]
    assert refusal.actor == BOB.key_id
    assert not refusal.detail["evidence"]["gates"]["passed"]


async def test_who_was_champion_when_and_why_is_one_question(case: Case) -> None:
    for version in ("2", "3"):
        await case.force(version)
    await case.promotions().rollback(case.model, BOB, reason="worse")
    assert await case.acts() == [("bootstrap", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "2")]
    for period in (await case.history.history(case.model)).items:
        result = await case.history.champion_at(case.model, period.promotion.at)
        assert result is not None
        assert (result.promotion.id, result.until) == (period.promotion.id, period.until)
    assert case.registry.champion_version(case.model) == "2"


async def test_two_people_at_once_are_one_change_and_one_conflict(case: Case) -> None:
    await case.promotions().reconcile(case.model, "1")
    results = await asyncio.gather(case.force("2"), case.force("3", BOB), return_exceptions=True)
    (won,) = [result for result in results if isinstance(result, PromotionOutcome)]
    (conflict,) = [result for result in results if not isinstance(result, PromotionOutcome)]
    assert isinstance(conflict, Conflict)
    assert "by key" in str(conflict)
    assert case.registry.champion_version(case.model) == won.version
    assert await case.acts() == [("bootstrap", "1"), ("promote", won.version)]


async def test_a_move_by_another_client_is_recorded_once_by_several_reconcilers(case: Case) -> None:
    await case.promotions().reconcile(case.model, "1")
    case.registry.set_alias(case.model, CHAMPION, "3")
    for _ in range(3):
        await asyncio.gather(*(case.promotions().reconcile(case.model, "3") for _ in range(3)))
    assert await case.acts() == [("bootstrap", "1"), ("external", "3")]
    assert await case.audited() == ["champion.bootstrap", "champion.external"]
    assert (await case.promotions().rollback(case.model, ADA)).version == "1"


class Interrupted(BaseException):
    """The end of a process."""


class Dying(ModelRegistry):
    """A registry whose process dies right before or right after the alias moves."""

    def __init__(self, registry: ModelRegistry, *, after: bool) -> None:
        super().__init__(registry._mlflow.tracking_uri, artifact_root=registry._mlflow.artifact_root)
        self._after = after

    def set_alias(self, model: str, alias: str, version: str, *, seconds: float | None = None) -> None:
        if self._after:
            super().set_alias(model, alias, version)
        raise Interrupted


@pytest.mark.parametrize(("after", "acts"), [(False, []), (True, [("promote", "2")])])
async def test_a_death_around_the_move_is_settled_by_the_alias(
    case: Case, after: bool, acts: list[tuple[str, str]]
) -> None:
    promotions = case.promotions(registry=Dying(case.registry, after=after))
    with pytest.raises(Interrupted):
        await promotions.promote(case.model, "2", ADA, force=True, reason="a test")
    assert (await case.history.state(case.model)).intended is not None
    seen = case.registry.champion_version(case.model)
    for _ in range(2):
        await asyncio.gather(*(case.promotions(grace=0).reconcile(case.model, seen) for _ in range(3)))
    assert (await case.history.state(case.model)).intended is None
    assert await case.acts() == [("bootstrap", "1"), *acts]
    assert (await case.force("3")).changed


async def test_a_death_between_intention_and_lock_gives_way_to_the_next(case: Case) -> None:
    await case.promotions().reconcile(case.model, "1")
    standing = await case.history.state(case.model)
    assert standing.champion is not None
    new = NewPromotion(model=case.model, version_from="1", version_to="2", act=Act.PROMOTE)
    await case.history.intend(new, after=standing.champion.id)
    with pytest.raises(Conflict, match="under way: promote from version 1 to 2"):
        await case.force("3")
    done = await case.promotions(grace=0).promote(case.model, "3", BOB, force=True, reason="a test")
    assert done.changed
    assert await case.acts() == [("bootstrap", "1"), ("promote", "3")]


_PROCESS = """
import asyncio, os, sys
from pathlib import Path
from uuid import uuid4
from db.connection.engine import Database
from db.models.evaluations import EvaluationRepository
from db.models.promotions import PromotionRepository
from registry.store.model_registry import ModelRegistry
from serving.core.catalog import Catalog, CatalogEntry, VersionState
from serving.core.caller import Caller, Role
from serving.models.promotion import PromotionService

url, mlflow, root, model, after, key = sys.argv[1:]

class Killed(ModelRegistry):
    def set_alias(self, *arguments, **named):
        if after == "True":
            super().set_alias(*arguments, **named)
        os.kill(os.getpid(), 9)

async def main():
    database = Database(url, installation_key=bytes.fromhex(key))
    await database.open()
    registry = Killed(mlflow, artifact_root=Path(root))
    found = {r.version: CatalogEntry(record=r, state=VersionState.READY) for r in registry.versions(model)}
    promotions = PromotionService(
        promotions=PromotionRepository(database), evaluations=EvaluationRepository(database), registry=registry,
        catalog=lambda: Catalog(models={model: found}))
    caller = Caller(key_id=uuid4(), holder_id=uuid4(), role=Role.ENGINEER)
    await promotions.promote(model, "2", caller, force=True, reason="to be killed")

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [False, True])
async def test_a_killed_process_leaves_no_lock_and_nothing_doubled(case: Case, url: str, after: bool) -> None:
    registry = case.registry
    arguments = [
        url,
        registry._mlflow.tracking_uri,
        str(registry._mlflow.artifact_root),
        case.model,
        str(after),
        KEY.hex(),
    ]
    command = [sys.executable, "-c", _PROCESS, *arguments]
    done = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr
    async with asyncio.timeout(10):
        seen = registry.champion_version(case.model)
        while (await case.history.state(case.model)).intended is not None:
            await asyncio.gather(*(case.promotions(grace=0).reconcile(case.model, seen) for _ in range(2)))
            await asyncio.sleep(0.1)
    await case.promotions().reconcile(case.model, seen)
    assert await case.acts() == [("bootstrap", "1"), *([("promote", "2")] if after else [])]
    assert registry.champion_version(case.model) == ("2" if after else "1")


class Stalled(ModelRegistry):
    """A registry that moves no alias before it may go on."""

    def __init__(self, registry: ModelRegistry) -> None:
        super().__init__(registry._mlflow.tracking_uri, artifact_root=registry._mlflow.artifact_root)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def set_alias(self, model: str, alias: str, version: str, *, seconds: float | None = None) -> None:
        self.reached.set()
        assert self.go_on.wait(60)
        super().set_alias(model, alias, version)


async def test_while_mlflow_stalls_no_other_change_begins(
    case: Case, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "IDLE_IN_TRANSACTION", "100ms")
    registry = Stalled(case.registry)
    async with open_database(url) as database:
        stalled = PromotionService(
            promotions=PromotionRepository(database),
            evaluations=EvaluationRepository(database),
            registry=registry,
            catalog=case.catalog,
            grace_seconds=0,
        )
        first = asyncio.create_task(stalled.promote(case.model, "2", ADA, force=True, reason="a test"))
        await asyncio.to_thread(registry.reached.wait, 60)
        # Longer than a session may idle in any other transaction.
        await run_sql(case.database, "SELECT pg_sleep(0.5)")
        with pytest.raises(Conflict, match="under way: promote from version 1 to 2"):
            await case.force("3")
        registry.go_on.set()
        assert (await first).changed
    assert case.registry.champion_version(case.model) == "2"
    assert await case.acts() == [("bootstrap", "1"), ("promote", "2")]


async def test_stopping_an_experiment_waits_for_the_promotion_that_its_policy_is_making(case: Case) -> None:
    one, two, _ = case.registry.versions(case.model)
    for record, accuracy in ((one, 0.7), (two, 0.75)):
        await case.report(record, accuracy)
    experiments, policy = ExperimentRepository(case.database), {"action": "decide"}
    new = NewExperiment(
        model=case.model, champion="1", challenger="2", share=0.5, shadow=False, salt="s", policy=policy
    )
    running = await experiments.create(new, actor=None)
    decision = PromotionDecision(
        act=Act.POLICY,
        evidence={"experiment": str(running.id)},
        experiment=PolicyExperiment(id=running.id, policy=policy),
    )
    registry = Stalled(case.registry)
    promoting = asyncio.create_task(case.promotions(registry=registry).decide(case.model, "2", decision))
    await asyncio.to_thread(registry.reached.wait, 60)
    stopping = asyncio.create_task(experiments.stop(running.id, actor=None, reason="enough"))
    await wait_for_lock(case.database)
    assert not stopping.done()
    registry.go_on.set()
    assert (await promoting).changed
    assert (await stopping).state == "stopped"
    await case.promotions().rollback(case.model, BOB)
    assert not (await case.promotions().decide(case.model, "2", decision)).changed
    assert await case.acts() == [("bootstrap", "1"), ("policy", "2"), ("rollback", "1")]


async def test_a_move_that_comes_too_late_is_not_made(case: Case) -> None:
    with pytest.raises(RegistryUnavailable, match="nothing was changed"):
        case.registry.set_alias(case.model, CHAMPION, "2", seconds=0.0)
    assert case.registry.champion_version(case.model) == "1"


async def test_a_champion_whose_version_is_gone_cant_be_rolled_back_to(case: Case) -> None:
    await case.force("2")
    case.registry._mlflow.client.delete_model_version(case.model, "1")
    with pytest.raises(Refused, match="version 1 isn't registered any more"):
        await case.promotions().rollback(case.model, ADA)
    assert case.registry.champion_version(case.model) == "2"
