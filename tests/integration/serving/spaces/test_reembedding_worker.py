"""Re-embedding under the control: real processes, a real registry, a real encoder, kills and restarts."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from db.connection.engine import Database
from db.embeddings.spaces import SpaceRepository, SpaceState
from db.embeddings.vectors import VectorRepository
from db.predictions.submissions import Stored
from registry.bundles.bundle import Bundle
from registry.errors import ExportFailed
from registry.store.model_registry import ModelRegistry
from registry.store.registration import ensure_space_encoder
from serving.core.subprocesses import run_module
from serving.inference.engines.factory import open_encoder
from serving.spaces.reembedding_runner import ReembeddingRunner
from serving.spaces.reembedding_worker import ReembeddingWorker, SpaceEncoders
from tests.support.postgres import KEY, SPACE
from tests.support.reembedding import count_vectors_by_text, run_until_idle
from tests.support.row_factories import new_key, new_submission, new_text, new_writer
from tests.support.tiny import TINY_SPACE, sentences, tiny_source

pytestmark = pytest.mark.anyio

WIDE = "tiny-384"


@pytest.fixture
def platform(
    registry: ModelRegistry, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelRegistry:
    """Set up what a process of this test's platform reads, and an encoder with a space of the index's width."""
    folder = tmp_path / "wide"
    tiny_source(folder, dimensions=384)
    record = ensure_space_encoder(registry, folder, WIDE, work=tmp_path / "work")
    assert (record.space, record.dimensions) == (WIDE, 384)
    for name in list(os.environ):
        if name.startswith("VALENCE_"):
            monkeypatch.delenv(name)
    for name, value in {
        "DATABASE_URL": url,
        "MLFLOW_TRACKING_URI": registry._mlflow.tracking_uri,
        "VALENCE_HOME": str(tmp_path / "home"),
        "VALENCE_INSTALLATION_KEY": KEY.hex(),
        "VALENCE_REEMBEDDING_SHARE": "1",
        "VALENCE_ENGINE": "fp32",
    }.items():
        monkeypatch.setenv(name, value)
    return registry


def workers() -> list[psutil.Process]:
    """Return the processes that re-embed."""
    results = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "serving.spaces.reembedding_worker" in child.cmdline():
                results.append(child)
    return results


@asynccontextmanager
async def keep_running(spaces: SpaceRepository) -> AsyncIterator[None]:
    """Keep the worker running, as the control does."""

    async def launch() -> str | None:
        return await run_module("serving.spaces.reembedding_worker")

    task = asyncio.create_task(ReembeddingRunner(spaces, launch).run(every=0.05))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def wait_until(happened: Callable[[], Awaitable[bool]]) -> None:
    """Wait for another process."""
    async with asyncio.timeout(120):
        while True:
            if await happened():
                return
            await asyncio.sleep(0.05)


async def test_a_killed_process_is_begun_again_and_every_text_has_its_vector(
    database: Database, platform: ModelRegistry, tmp_path: Path
) -> None:
    key = await new_key(database)
    texts = [new_text(sentence) for sentence in dict.fromkeys(sentences(400))]
    assert await new_writer(database).commit([new_submission(key, texts)]) == [Stored()]
    spaces = SpaceRepository(database)
    await spaces.ensure_live(SPACE)
    await spaces.begin(WIDE, actor=None)
    late = [new_text(f"late {number}") for number in range(3)]
    everything = dict.fromkeys([text.id for text in [*texts, *late]], 1)

    async def begun() -> bool:
        return any((await count_vectors_by_text(database, WIDE)).values())

    async def whole() -> bool:
        is_whole = (await spaces.states())[WIDE] is SpaceState.WHOLE
        return is_whole and await count_vectors_by_text(database, WIDE) == everything

    async with keep_running(spaces):
        await wait_until(begun)
        (worker,) = workers()
        nice = worker.nice()
        worker.kill()
        assert await new_writer(database).commit([new_submission(key, late)]) == [Stored()]
        await wait_until(whole)
    assert nice == 19
    assert workers() == []
    assert await count_vectors_by_text(database, SPACE) == everything
    encoder = open_encoder(Bundle.open(platform.fetch(platform.space_encoder(WIDE), tmp_path / "cache")))
    result = await VectorRepository(database, space=WIDE).of_texts([texts[5].id])
    (micro,) = encoder.run([texts[5].content])
    assert float(result[texts[5].id] @ micro.embedding[0]) > 0.99


async def test_a_space_that_no_encoder_defines_says_so(
    database: Database, platform: ModelRegistry, tmp_path: Path
) -> None:
    key = await new_key(database)
    assert await new_writer(database).commit([new_submission(key)]) == [Stored()]
    spaces = SpaceRepository(database)
    await spaces.ensure_live(SPACE)
    await spaces.begin("nobodys", actor=None)
    await run_until_idle(
        ReembeddingWorker(database, SpaceEncoders(platform, cache=tmp_path / "cache"), retry_seconds=0.0)
    )
    _, beside = await spaces.list()
    assert (beside.name, beside.state, beside.vectors) == ("nobodys", SpaceState.BUILDING, 0)
    assert beside.reason is not None


async def test_an_encoder_defines_one_space_and_a_space_has_one_encoder(
    platform: ModelRegistry, tmp_path: Path
) -> None:
    with pytest.raises(ExportFailed, match=f"for the space '{WIDE}'"):
        ensure_space_encoder(platform, tmp_path / "wide", "by-another-name", work=tmp_path / "work")
    tiny_source(tmp_path / "other", seed=4)
    with pytest.raises(ExportFailed, match="another encoder already"):
        ensure_space_encoder(platform, tmp_path / "other", TINY_SPACE, work=tmp_path / "work")
