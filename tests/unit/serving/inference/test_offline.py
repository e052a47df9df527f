"""A version opened alone: answers in order, or none; vectors compared."""

from collections.abc import Collection, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.errors import Invalid
from serving.inference.microbatches import MicroBatch
from serving.inference.offline import OfflineScorer, cosines, rest_to_share

WORDS = {"bad": 0, "plain": 1, "good": 2}


class Backwards:
    """An encoder that returns its micro-batches in another order than the texts."""

    settings: Any = SimpleNamespace(dimensions=4)
    digest = "e" * 64
    engine = "fake"

    def __init__(self) -> None:
        self.passes = 0

    def run(
        self, texts: Sequence[str], *, bulk: bool = False, queries: Collection[int] = ()
    ) -> Iterator[MicroBatch]:
        self.passes += 1
        for row in reversed(range(len(texts))):
            yield MicroBatch(
                rows=np.array([row]),
                texts=(texts[row],),
                embedding=np.full((1, 4), row, np.float32),
                tokens=np.zeros((1, 1, 1), np.float32),
                mask=np.ones((1, 1), np.bool_),
                truncated=np.zeros(1, np.bool_),
                unknown=np.zeros(1, np.bool_),
            )


class Words:
    """A head that knows three words."""

    def scores(self, batch: MicroBatch) -> Any:
        return np.eye(3, dtype=np.float32)[[WORDS[text] for text in batch.texts]]


def test_answers_and_vectors_are_in_the_order_of_the_texts() -> None:
    result = OfflineScorer(Words(), Backwards(), rest=lambda _: None).run(["good", "bad", "plain"])
    assert result.scores.argmax(axis=1).tolist() == [2, 0, 1]
    assert result.vectors[:, 0].tolist() == [0, 1, 2]


def test_it_rests_between_some_texts_and_the_next() -> None:
    rests: list[float] = []
    texts = ["good", "bad", "plain"] * 50
    result = OfflineScorer(Words(), Backwards(), rest=rests.append).run(texts)
    assert result.scores.argmax(axis=1).tolist() == [2, 0, 1] * 50
    assert len(rests) == 3
    assert min(rests) > 0


@pytest.mark.parametrize(("share", "slept"), [(0.25, [6.0]), (1.0, [0.0])])
def test_a_rest_leaves_the_share_of_the_time(
    share: float, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps: list[float] = []
    monkeypatch.setattr("serving.inference.offline.time.sleep", sleeps.append)
    rest_to_share(share)(2.0)
    assert sleeps == slept


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (np.full((1, 3), np.nan, np.float32), "2 of 2 texts got no finite answer"),
        (np.zeros((1, 2), np.float32), r"shape \(1, 2\) for 1 texts"),
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\)"),
    ],
)
def test_a_head_without_a_usable_answer_is_refused(scores: Any, why: str) -> None:
    head = SimpleNamespace(scores=lambda _: scores)
    with pytest.raises(Invalid, match=why):
        OfflineScorer(head, Backwards(), rest=lambda _: None).run(["good", "bad"])


def test_an_answer_costs_both_encoders_where_the_own_is_not_of_the_space() -> None:
    own, space = Backwards(), Backwards()
    result = OfflineScorer(Words(), own, space_encoder=space, rest=lambda _: None).latency(["good", "bad"])
    assert result.engine == "fake"
    assert result.alone_ms > 0
    assert result.texts_per_second > 0
    assert own.passes == space.passes > 0


def test_vectors_of_different_widths_have_nothing_in_common() -> None:
    ones = np.ones((2, 4), np.float32) / 2
    assert cosines(ones, ones).tolist() == [1.0, 1.0]
    assert cosines(ones, np.ones((2, 3), np.float32)).tolist() == [0.0, 0.0]
