"""Both ends of the remote call, with a predictable encoder and predictable heads."""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest

from registry.errors import BundleInvalid
from registry.store.records import VersionRecord
from serving.errors import ModelNotReady, NotReady
from serving.inference import replica as module
from serving.inference.dispatcher import Inference, InferenceItem
from serving.inference.microbatches import MicroBatch, WarmUp
from serving.inference.replica import Replica
from serving.inference.replica_client import ReplicaClient

pytestmark = pytest.mark.anyio


class LengthEncoder:
    """An encoder whose vectors encode a text's length; micro-batches of two, in reverse order."""

    settings = SimpleNamespace(dimensions=4)

    def __init__(self) -> None:
        self.texts: list[str] = []

    def run(
        self, texts: Sequence[str], *, bulk: bool = False, queries: Collection[int] = ()
    ) -> Iterator[MicroBatch]:
        self.texts.extend(texts)
        if len(texts) > 1 and "poison" in texts:
            raise RuntimeError("a bad batch")
        for start in reversed(range(0, len(texts), 2)):
            rows = np.arange(start, min(start + 2, len(texts)))[::-1]
            chosen = tuple(texts[row] for row in rows)
            if chosen == ("poison",):
                raise RuntimeError("a bad text")
            vectors = np.eye(4, dtype=np.float32)[[len(text) % 4 for text in chosen]]
            yield MicroBatch(
                rows=rows,
                texts=chosen,
                embedding=vectors,
                tokens=np.zeros((len(rows), 1, 1), np.float32),
                mask=np.ones((len(rows), 3), np.bool_),
                truncated=np.array([len(text) > 9 for text in chosen]),
                unknown=np.array([text.startswith("?") for text in chosen]),
            )


class ConstantHead:
    """A head that gives every text the same scores, or none."""

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = np.array(scores, np.float32)

    def scores(self, batch: MicroBatch) -> np.ndarray:
        return np.tile(self._scores, (len(batch.rows), 1))


class LengthHead:
    """A head whose score names the text's length."""

    def scores(self, batch: MicroBatch) -> np.ndarray:
        lengths = np.array([len(text) for text in batch.texts], np.float32)
        return np.stack([lengths / 100, np.zeros_like(lengths), 1 - lengths / 100], axis=1)


HEADS = {"a": [0.7, 0.2, 0.1], "b": [0.1, 0.2, 0.7], "nan": [float("nan")] * 3}


def version(digest: str, *languages: str) -> VersionRecord:
    return VersionRecord(
        model="sentiment",
        version=digest,
        kind="head",
        digest=digest,
        encoder="e",
        uri="",
        languages=languages,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.fixture
def encoder() -> LengthEncoder:
    return LengthEncoder()


@pytest.fixture
def encoders(encoder: LengthEncoder, monkeypatch: pytest.MonkeyPatch) -> ReplicaClient:
    monkeypatch.setattr(module.Bundle, "open", lambda path: path)

    def load(path: Path) -> ConstantHead | LengthHead:
        if path.name == "length":
            return LengthHead()
        if path.name not in HEADS:
            raise BundleInvalid(f"{path.name} has no head")
        return ConstantHead(HEADS[path.name])

    monkeypatch.setattr(module, "load_head", load)
    return ReplicaClient(Replica(encoder, lambda record: Path(record.digest)))


async def test_each_text_gets_its_own_vector_and_the_scores_of_its_own_version(
    encoders: ReplicaClient,
) -> None:
    items = [InferenceItem(text="x" * n, record=version("ab"[n % 2])) for n in range(1, 8)]
    for n, answer in enumerate(await encoders.infer(items, bulk=False), start=1):
        assert isinstance(answer, Inference)
        assert answer.scores == pytest.approx(HEADS["ab"[n % 2]])
        assert np.frombuffer(answer.embedding, np.float16).argmax() == n % 4
        assert not answer.truncated


async def test_scores_belong_to_their_text_whatever_the_order_of_the_micro_batch(
    encoders: ReplicaClient,
) -> None:
    items = [
        InferenceItem(text="x" * n, record=version(digest))
        for n in (5, 3, 9, 1, 4)
        for digest in ("length", "a")
    ]
    answers = await encoders.infer(items, bulk=False)
    results = [answer.scores for answer in answers if isinstance(answer, Inference)]
    assert [round(scores[0] * 100) for scores in results[::2]] == [5, 3, 9, 1, 4]
    assert results[1::2] == [pytest.approx(HEADS["a"])] * 5


async def test_equal_texts_are_computed_once(encoders: ReplicaClient, encoder: LengthEncoder) -> None:
    answers = await encoders.infer([InferenceItem(text="same", record=version("a"))] * 5, bulk=False)
    assert encoder.texts == ["same"]
    assert len({answer.embedding for answer in answers if isinstance(answer, Inference)}) == 1


async def test_a_text_that_upsets_the_encoder_fails_alone(encoders: ReplicaClient) -> None:
    texts = ["one", "poison", "three"]
    answers = await encoders.infer(
        [InferenceItem(text=text, record=version("a")) for text in texts], bulk=False
    )
    assert [type(answer) for answer in answers] == [Inference, ModelNotReady, Inference]


@pytest.mark.parametrize("broken", ["nan", "missing"])
async def test_a_broken_head_fails_only_the_texts_that_request_it(
    encoders: ReplicaClient, broken: str
) -> None:
    items = [
        InferenceItem(text="one", record=version("a")),
        InferenceItem(text="two", record=version(broken)),
    ]
    good, bad = await encoders.infer(items, bulk=False)
    assert isinstance(good, Inference)
    assert isinstance(bad, ModelNotReady)


async def test_each_version_says_whether_it_knows_the_language_of_each_text(encoders: ReplicaClient) -> None:
    german, english = "Der Akku ist leider schnell leer", "The battery lasts for days, I love it"
    items = [
        InferenceItem(text=text, record=record)
        for text in (german, "ok", english)
        for record in (version("a", "en"), version("b", "de"), None)
    ]
    answers = [each for each in await encoders.infer(items, bulk=False) if isinstance(each, Inference)]
    assert [each.foreign for each in answers] == [True, False, False, False, False, False, False, True, False]
    languages = ["de", "de", "und", "und", "und", "und", "en", "en", "und"]
    assert [each.language for each in answers] == languages


async def test_a_text_that_the_encoder_does_not_know_is_marked(encoders: ReplicaClient) -> None:
    items = [InferenceItem(text=text, record=version("a")) for text in ("good", "??", "bad")]
    items.append(InferenceItem(text="???", record=None))
    answers = [each for each in await encoders.infer(items, bulk=False) if isinstance(each, Inference)]
    assert [each.unknown for each in answers] == [False, True, False, True]


async def test_a_long_text_is_marked_as_truncated(encoders: ReplicaClient) -> None:
    (answer,) = await encoders.infer([InferenceItem(text="x" * 10, record=version("a"))], bulk=False)
    assert isinstance(answer, Inference)
    assert answer.truncated


async def test_embedding_gives_unit_vectors_and_counts_tokens(encoders: ReplicaClient) -> None:
    answers = await encoders.infer(
        [InferenceItem(text=text, record=None) for text in ("a", "bb", "ccc")], bulk=True
    )
    results = [answer for answer in answers if isinstance(answer, Inference)]
    assert [np.frombuffer(each.embedding, np.float16).argmax() for each in results] == [1, 2, 3]
    assert [each.tokens for each in results] == [3, 3, 3]


async def test_several_versions_of_a_text_share_its_pass(
    encoders: ReplicaClient, encoder: LengthEncoder
) -> None:
    items = [
        InferenceItem(text=text, record=record)
        for text in ("x", "yy")
        for record in (version("a"), version("b"), None)
    ]
    answers = await encoders.infer(items, bulk=False)
    assert sorted(encoder.texts) == ["x", "yy"]
    scores = [answer.scores for answer in answers if isinstance(answer, Inference)]
    assert scores == [pytest.approx(each) for each in (HEADS["a"], HEADS["b"], [0, 0, 0]) * 2]


async def test_a_text_in_flight_is_not_computed_again(
    encoder: LengthEncoder, encoders: ReplicaClient
) -> None:
    item = InferenceItem(text="same", record=version("a"))
    several = await asyncio.gather(*(encoders.infer([item], bulk=False) for _ in range(3)))
    assert encoder.texts == ["same"]
    assert [len(answers) for answers in several] == [1, 1, 1]
    await encoders.infer([item], bulk=False)
    assert encoder.texts == ["same", "same"]


async def test_waiters_for_a_lost_call_get_its_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        async def infer(self, question: object) -> NoReturn:
            await asyncio.sleep(0)
            raise NotReady("gone")

    encoders = ReplicaClient(Gone())
    item = InferenceItem(text="same", record=version("a"))
    several = await asyncio.gather(*(encoders.infer([item], bulk=False) for _ in range(2)))
    assert [type(answer) for answers in several for answer in answers] == [NotReady, NotReady]


async def test_a_version_is_proven_before_it_is_called_ready(
    encoder: LengthEncoder, encoders: ReplicaClient
) -> None:
    replica = Replica(encoder, lambda record: Path(record.digest))
    await replica.load(version("a"))
    for broken in ("nan", "missing"):
        with pytest.raises(BundleInvalid):
            await replica.load(version(broken))


class Clock:
    """A clock that moves only in sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_cold_shapes_are_compiled_only_while_nobody_items(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, compiled = Clock(), []
    monkeypatch.setattr(module, "time", clock)
    replica = Replica(LengthEncoder(), lambda _: Path(), threads=1)

    def warm_up(_budget: float) -> WarmUp:
        compiled.append(clock.now - replica._last_call)
        if len(compiled) == 2:
            replica._last_call = clock.now
        return WarmUp(shapes=len(compiled), of=4, seconds=0)

    replica._encoder.warm_up = warm_up
    replica._warm_rest()
    assert len(compiled) == 4
    assert min(compiled) >= module._IDLE_SECONDS
