"""Evaluations from the request to the report: real MLflow, real database, real bundles, a separate process."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil
import pytest

from db.analytics.replay import ReplayRepository
from db.connection.engine import Database
from db.embeddings.segments import Segments
from db.models.evaluations import Evaluation, EvaluationRepository, NewEvaluation
from db.predictions.feedback import FeedbackRepository, NewFeedback
from registry.bundles.bundle import Bundle
from registry.data.held_out import HeldOutSet
from registry.encoders.sources import default_source
from registry.errors import NotRegistered, RegistryUnavailable
from registry.evaluation.gates import Gates, evaluate_gates
from registry.evaluation.report import EvaluationReport
from registry.store.builtin_versions import open_builtin
from registry.store.model_registry import CHAMPION, ModelRegistry
from registry.store.records import EncoderRecord, VersionRecord
from serving.core.catalog import Catalog, CatalogEntry, VersionState
from serving.models.evaluation_queue import EvaluationQueue as Runner
from serving.models.evaluation_queue import Launch, run_evaluation
from serving.models.evaluation_worker import EvaluationWorker
from serving.models.evaluator import EvaluationPlan, VersionEvaluator
from tests.support.heads import head, weights
from tests.support.live import build_encoders
from tests.support.postgres import KEY
from tests.support.row_factories import new_key, new_submission, new_text, new_writer, unit_vectors
from tests.support.tiny import TINY_SPACE

pytestmark = pytest.mark.anyio

PLAN = EvaluationPlan(replayed=40, drawn=200, judged=50, rounds=50)
FEW = HeldOutSet(examples=HeldOutSet.load_builtin().examples[::40])


@pytest.fixture
def model(registry: ModelRegistry) -> str:
    """Return a new model whose versions are evaluated on few texts."""
    name = f"model-{uuid4().hex[:8]}"
    registry.put_held_out(FEW, model=name)
    return name


async def predictions(database: Database, model: str, texts: int) -> None:
    """Store texts, every fifth with feedback."""
    key = await new_key(database)
    vectors = unit_vectors(texts)
    submission = new_submission(
        key,
        [new_text(f"so good n{row}", vectors[row]) for row in range(texts)],
        model=model,
        label="positive",
    )
    await new_writer(database, TINY_SPACE).commit([submission])
    for prediction in submission.predictions[::5]:
        await FeedbackRepository(database).put(
            NewFeedback(prediction_id=prediction.id, holder_id=key.holder_id, key_id=key.id, is_correct=True)
        )


async def evaluate(
    database: Database,
    registry: ModelRegistry,
    record: VersionRecord,
    cache: Path,
    *,
    space: str = TINY_SPACE,
    plan: EvaluationPlan = PLAN,
) -> Evaluation:
    """Evaluate this version in this process; return the evaluation."""
    records = EvaluationRepository(database)
    result = await records.request(
        NewEvaluation(
            bundle_digest=record.digest,
            data_digest=registry.held_out_digest(record.model),
            model=record.model,
            version=record.version,
        )
    )
    assert await records.claim() is not None
    evaluator = VersionEvaluator(registry, space=space, cache=cache, plan=plan)
    work = EvaluationWorker(records, ReplayRepository(database, space=space), registry, evaluator)
    done = await work.run(result, cache=cache, plan=plan)
    ended = await records.get(result.id)
    assert done == (ended.state == "done")
    return ended


def report_of(evaluation: Evaluation) -> EvaluationReport:
    assert evaluation.report is not None, evaluation.reason
    return EvaluationReport.parse(evaluation.report)


async def test_a_head_is_measured_and_replayed_against_the_champion(
    database: Database, registry: ModelRegistry, model: str, cache: Path, tmp_path: Path
) -> None:
    lexicon = registry.register(open_builtin("lexicon"), model=model, alias=CHAMPION)
    encoder = registry.space_encoder(TINY_SPACE)
    candidate = registry.register(head(tmp_path / "head", encoder.digest), model=model)
    await Segments(database, TINY_SPACE).ensure()
    await predictions(database, model, 100)
    evaluation = await evaluate(database, registry, candidate, cache)
    result = report_of(evaluation)
    client = registry._mlflow.client
    run = client.get_run(client.get_model_version(model, candidate.version).run_id)
    assert run.data.metrics["evaluation.accuracy"] == result.held_out.accuracy.value
    assert {"evaluation.flips_share", "evaluation.recall_negative"} <= run.data.metrics.keys()
    logged = client.download_artifacts(run.info.run_id, f"evaluations/{evaluation.id}.json")
    shown = json.loads(await asyncio.to_thread(Path(logged).read_text))
    assert shown["held_out"]["accuracy"]["value"] == result.held_out.accuracy.value
    assert "furthest" not in shown["replay"]
    assert (result.bundle, result.data, result.encoder) == (candidate.digest, FEW.digest, encoder.digest)
    assert result.held_out.texts == len(FEW.examples)
    assert result.held_out.right.mean() == pytest.approx(result.held_out.accuracy.value, abs=1e-6)
    assert result.agreement is not None
    assert result.agreement.claims_space
    assert result.agreement.worst <= result.agreement.mean <= 1
    assert result.latency.alone_ms > 0
    assert result.size.encoder_bytes > result.size.version_bytes > 0
    replay = result.replay
    assert replay is not None
    assert (replay.champion_version, replay.champion_bundle) == (lexicon.version, lexicon.digest)
    assert replay.texts == 40
    assert sum(stratum.texts for stratum in replay.strata) == 40
    assert sum(stratum.judged for stratum in replay.strata) >= 15
    assert replay.corrected is not None
    assert replay.corrected.champion == 1.0
    assert sum(sum(row.values()) for row in replay.matrix.values()) == 40
    # Ids, never a text.
    dumped = json.dumps(result.dump())
    assert "so good" not in dumped
    assert FEW.examples[0].text not in dumped
    champion = report_of(await evaluate(database, registry, lexicon, cache))
    assert (champion.agreement, champion.replay, champion.encoder) == (None, None, None)
    evaluate_gates(Gates(), result, champion)


async def test_a_report_is_stored_though_mlflow_takes_none(
    database: Database, registry: ModelRegistry, model: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lexicon = registry.register(open_builtin("lexicon"), model=model)

    def refuse(*_arguments: object) -> None:
        raise RegistryUnavailable("MLflow can't answer")

    monkeypatch.setattr(registry, "log_evaluation", refuse)
    assert report_of(await evaluate(database, registry, lexicon, cache)).version == lexicon.version


async def test_an_evaluation_waits_for_the_space_s_own_encoder(
    database: Database, registry: ModelRegistry, model: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lexicon = registry.register(open_builtin("lexicon"), model=model)
    result, outcome = registry.space_encoder, []

    def later(space: str) -> EncoderRecord:
        outcome.append(space)
        if len(outcome) < 3:
            raise NotRegistered("it is being built")
        return result(space)

    monkeypatch.setattr(registry, "space_encoder", later)
    monkeypatch.setattr("serving.models.evaluator._POLL_SECONDS", 0.0)
    assert report_of(await evaluate(database, registry, lexicon, cache)).version == lexicon.version
    outcome.clear()
    ended = await evaluate(
        database, registry, registry.register(open_builtin("head"), model=model), cache,
        plan=replace(PLAN, encoder_timeout=-1.0),
    )  # fmt: skip
    assert (ended.state, ended.reason) == ("failed", "it is being built")


Break = Callable[[Path, str], Bundle]


def of_wrong_width(folder: Path, encoder: str) -> Bundle:
    return head(folder, encoder, weights(states=7))


def of_too_few_classes(folder: Path, encoder: str) -> Bundle:
    tensors = weights()
    tensors["out.weight"], tensors["out.bias"] = tensors["out.weight"][:, :2], tensors["out.bias"][:2]
    return head(folder, encoder, tensors)


def without_a_tensor(folder: Path, encoder: str) -> Bundle:
    tensors = weights()
    del tensors["out.bias"]
    return head(folder, encoder, tensors)


def of_nan(folder: Path, encoder: str) -> Bundle:
    return head(folder, encoder, weights() | {"out.bias": np.full(3, np.nan, np.float16)})


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (of_wrong_width, "matmul"),
        (of_too_few_classes, "shape"),
        (without_a_tensor, "no usable head"),
        (of_nan, "no finite answer"),
    ],
)
async def test_a_broken_head_fails_its_evaluation_with_the_reason(
    database: Database,
    registry: ModelRegistry,
    model: str,
    cache: Path,
    tmp_path: Path,
    broken: Break,
    why: str,
) -> None:
    bundle = broken(tmp_path / "head", registry.space_encoder(TINY_SPACE).digest)
    ended = await evaluate(database, registry, registry.register(bundle, model=model), cache)
    assert (ended.state, ended.report) == ("failed", None)
    assert ended.reason is not None
    assert why in ended.reason


@pytest.mark.parametrize(("damage", "why"), [("forged", "is corrupt"), ("missing", "can't be read")])
async def test_a_damaged_bundle_fails_its_evaluation_by_name(
    database: Database,
    registry: ModelRegistry,
    model: str,
    cache: Path,
    tmp_path: Path,
    damage: str,
    why: str,
) -> None:
    bundle = head(tmp_path / "head", registry.space_encoder(TINY_SPACE).digest, seed=1)
    record = registry.register(bundle, model=model)
    file = registry.fetch(record, cache) / "head.safetensors"
    if damage == "forged":
        file.write_bytes(b"forged")
    else:
        file.unlink()
    ended = await evaluate(database, registry, record, cache)
    assert ended.state == "failed"
    assert ended.reason is not None
    assert why in ended.reason
    assert "head.safetensors" in ended.reason


Settle = Callable[[str], None]


@pytest.fixture
def set_platform(
    registry: ModelRegistry, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settle:
    """Set what a process of this test's platform reads, for a space."""

    def settled(space: str) -> None:
        for name in list(os.environ):
            if name.startswith("VALENCE_"):
                monkeypatch.delenv(name)
        for name, value in {
            "DATABASE_URL": url,
            "MLFLOW_TRACKING_URI": registry._mlflow.tracking_uri,
            "VALENCE_HOME": str(tmp_path / "home"),
            "VALENCE_INSTALLATION_KEY": KEY.hex(),
            "VALENCE_SPACE": space,
        }.items():
            monkeypatch.setenv(name, value)

    return settled


def runner_of(
    database: Database, registry: ModelRegistry, model: str, launch: Launch = run_evaluation
) -> Runner:
    """Return the evaluation runner of a model whose versions are all ready."""
    versions = {
        record.version: CatalogEntry(record=record, state=VersionState.READY)
        for record in registry.versions(model)
    }
    catalog = Catalog(models={model: versions})
    return Runner(
        evaluations=EvaluationRepository(database), registry=registry, catalog=lambda: catalog, launch=launch
    )


async def test_a_process_of_its_own_measures_at_the_lowest_priority(
    database: Database,
    registry: ModelRegistry,
    model: str,
    url: str,
    set_platform: Settle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = registry.register(open_builtin("lexicon"), model=model)
    set_platform(TINY_SPACE)
    nice: set[int] = set()

    async def watched(number: int) -> str | None:
        task = asyncio.create_task(run_evaluation(number))
        while not task.done():
            for child in psutil.Process().children():
                try:
                    if "serving.models.evaluation_worker" in child.cmdline():
                        nice.add(child.nice())
                except psutil.Error:
                    continue
            await asyncio.sleep(0.2)
        return await task

    records, runner = EvaluationRepository(database), runner_of(database, registry, model, watched)
    result = await runner.request(model, record.version, None)
    assert await runner.step()
    ended = await records.get(result.id)
    assert ended.state == "done", ended.reason
    assert report_of(ended).held_out.texts == len(FEW.examples)
    assert 19 in nice
    # A process that can't start is reported, too.
    again = await runner.request(model, record.version, None)
    monkeypatch.setenv("DATABASE_URL", f"{url}_gone")
    assert await runner.step()
    failed = await records.get(again.id)
    assert failed.state == "failed"
    assert failed.reason is not None
    assert "database" in failed.reason


async def test_the_built_in_head_passes_against_the_lexicon_and_the_lexicon_fails(
    database: Database, registry: ModelRegistry, model: str, set_platform: Settle
) -> None:
    source = default_source()
    registry.register_encoder(Bundle.open(build_encoders()[source.digest]))
    registry.put_held_out(HeldOutSet(examples=HeldOutSet.load_builtin().examples[::6]), model=model)
    set_platform(source.space or "")
    lexicon, head_ = (registry.register(open_builtin(name), model=model) for name in ("lexicon", "head"))
    registry.set_alias(model, CHAMPION, lexicon.version)
    records, runner = EvaluationRepository(database), runner_of(database, registry, model)
    # The champion is measured in the same run.
    await runner.request(model, head_.version, None)
    while await runner.step():
        pass
    reports = {}
    for record in (lexicon, head_):
        (ended,) = await records.list_of_bundle(record.digest)
        reports[record.kind] = report_of(ended)
    assert reports["head"].held_out.accuracy.value > 0.7
    assert reports["head"].agreement is not None
    assert reports["head"].agreement.mean > 0.98
    passed = evaluate_gates(Gates(), reports["head"], reports["lexicon"])
    assert passed.passed, passed.reason
    failed = evaluate_gates(Gates(), reports["lexicon"], reports["head"])
    assert "accuracy_difference" in {check.name for check in failed.checks if not check.passed}
