"""Dispatcher: scores of one encoder joined with vectors of another, each text with its own."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from serving.core.catalog import Placement
from serving.errors import ModelNotReady
from serving.inference.dispatcher import BatchLimits, Dispatcher, Inference, InferenceItem
from tests.fakes.data import FakeEncoders, vector_of
from tests.support.app import record

pytestmark = pytest.mark.anyio
TEXTS = ["good one", "bad one", "a thing that is neither", "great", "broke", "love", "hate"]


class OtherSpace(FakeEncoders):
    """Scores well, but its vectors are no use."""

    async def infer(self, asks: Sequence[InferenceItem], *, bulk: bool) -> Sequence[Inference | Exception]:
        found = await super().infer(asks, bulk=bulk)
        return [replace(each, embedding=b"") if isinstance(each, Inference) else each for each in found]


@pytest.fixture
def encoders() -> dict[str, FakeEncoders]:
    return {"space": FakeEncoders(), "foreign": OtherSpace()}


@pytest.fixture
def compute(encoders: dict[str, FakeEncoders]) -> Dispatcher:
    return Dispatcher(encoders.__getitem__, BatchLimits())


@pytest.mark.parametrize("count", [1, 3, len(TEXTS)])
async def test_a_version_outside_the_space_gets_the_vectors_of_the_spaces_encoder(
    compute: Dispatcher, encoders: dict[str, FakeEncoders], count: int
) -> None:
    place = Placement(scorer="foreign", embedder="space")
    found = await compute.infer(TEXTS[:count], record("1"), place)
    assert [each.embedding for each in found.results] == [
        vector_of(text).astype("<f2").tobytes() for text in TEXTS[:count]
    ]
    assert [max(range(3), key=each.scores.__getitem__) for each in found.results] == [2, 0, 1, 2, 0, 2, 0][
        :count
    ]
    assert encoders["foreign"].batches == encoders["space"].batches == [count]


async def test_a_version_in_the_space_costs_one_pass(
    compute: Dispatcher, encoders: dict[str, FakeEncoders]
) -> None:
    await compute.infer(TEXTS, record("1"), Placement(scorer="space", embedder="space"))
    assert (encoders["space"].batches, encoders["foreign"].batches) == ([len(TEXTS)], [])


async def test_an_encoder_that_fails_holds_up_nobody_else(
    compute: Dispatcher, encoders: dict[str, FakeEncoders]
) -> None:
    encoders["foreign"].fault = ModelNotReady("gone")
    with pytest.raises(ModelNotReady):
        await compute.infer(["good"], record("1"), Placement(scorer="foreign", embedder="space"))
    found = await compute.infer(["good"], record("1"), Placement(scorer="space", embedder="space"))
    assert len(found.results) == 1
