"""The dispatcher: scores of one encoder joined with vectors of another, each text with its own."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from serving.core.catalog import Placement
from serving.errors import ModelNotReady
from serving.inference.dispatcher import BatchLimits, Dispatcher, Inference, InferenceItem
from tests.fakes.inference import FakeBatchObserver, FakeEncoderClient, vector_of
from tests.support.app import new_record

pytestmark = pytest.mark.anyio
TEXTS = ["good one", "bad one", "a thing that is neither", "great", "broke", "love", "hate"]


class OtherSpace(FakeEncoderClient):
    """An encoder that scores well, but whose vectors are unusable."""

    async def infer(self, items: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        results = await super().infer(items, bulk=bulk)
        return [replace(each, embedding=b"") if isinstance(each, Inference) else each for each in results]


@pytest.fixture
def encoders() -> dict[str, FakeEncoderClient]:
    return {"space": FakeEncoderClient(), "foreign": OtherSpace()}


@pytest.fixture
def dispatcher(encoders: dict[str, FakeEncoderClient]) -> Dispatcher:
    return Dispatcher(encoders.__getitem__, BatchLimits(), lambda _: FakeBatchObserver())


@pytest.mark.parametrize("count", [1, 3, len(TEXTS)])
async def test_a_version_outside_the_space_gets_the_vectors_of_the_spaces_encoder(
    dispatcher: Dispatcher, encoders: dict[str, FakeEncoderClient], count: int
) -> None:
    placement = Placement(scorer="foreign", embedder="space")
    batch = await dispatcher.infer(TEXTS[:count], new_record("1"), placement)
    assert [each.embedding for each in batch.results] == [
        vector_of(text).astype("<f2").tobytes() for text in TEXTS[:count]
    ]
    assert [max(range(3), key=each.scores.__getitem__) for each in batch.results] == [2, 0, 1, 2, 0, 2, 0][
        :count
    ]
    assert encoders["foreign"].batches == encoders["space"].batches == [count]


async def test_a_version_in_the_space_costs_one_pass(
    dispatcher: Dispatcher, encoders: dict[str, FakeEncoderClient]
) -> None:
    await dispatcher.infer(TEXTS, new_record("1"), Placement(scorer="space", embedder="space"))
    assert (encoders["space"].batches, encoders["foreign"].batches) == ([len(TEXTS)], [])


async def test_an_encoder_that_fails_holds_up_nobody_else(
    dispatcher: Dispatcher, encoders: dict[str, FakeEncoderClient]
) -> None:
    encoders["foreign"].fault = ModelNotReady("gone")
    with pytest.raises(ModelNotReady):
        await dispatcher.infer(["good"], new_record("1"), Placement(scorer="foreign", embedder="space"))
    batch = await dispatcher.infer(["good"], new_record("1"), Placement(scorer="space", embedder="space"))
    assert len(batch.results) == 1
